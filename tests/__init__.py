"""The tests of RustyDB. See CONTRIBUTING.md for what goes where."""
