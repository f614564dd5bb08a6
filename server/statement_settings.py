"""Effects of the SET family and of set_config(): which setting becomes what.

`value` of an effect is the text that PostgreSQL itself would hand to the setting (its `flatten_set_variable_args`),
so that replaying it with set_config gives the same result; None where the text alone does not tell.
"""

from __future__ import annotations

from server.sql_parser import Node
from server.statement_info import Effect, EffectKind, PinReason
from server.statement_walk import strings

# GUC_LIST_QUOTE of PostgreSQL's guc_tables.c: their elements are identifiers, quoted where they must be.
_QUOTED_LISTS = frozenset(
    {
        "search_path",
        "temp_tablespaces",
        "session_preload_libraries",
        "shared_preload_libraries",
        "local_preload_libraries",
        "unix_socket_directories",
    }
)
_CHARACTERISTICS = {
    "transaction_isolation": "default_transaction_isolation",
    "transaction_read_only": "default_transaction_read_only",
    "transaction_deferrable": "default_transaction_deferrable",
}
_TEXT_TYPES = frozenset({"text", "varchar"})
_BOOLEAN_TYPES = frozenset({"bool"})
_TRUE_WORDS = frozenset({"t", "tr", "tru", "true", "y", "ye", "yes", "on", "1"})
_FALSE_WORDS = frozenset({"f", "fa", "fal", "fals", "false", "n", "no", "of", "off", "0"})

_COMPUTED = Effect(EffectKind.PIN, PinReason.COMPUTED_SETTING)
_TEMPORARY_SCHEMA = Effect(EffectKind.PIN, PinReason.TEMP_TABLE)


def constant_text(node: Node | None) -> str | None:
    """The text of a constant argument of SET, unquoted; None where it is not a plain constant."""
    constant = (node or {}).get("A_Const")
    if constant is None or constant.get("isnull"):
        return None
    if "sval" in constant:
        return str(constant["sval"].get("sval", ""))
    if "ival" in constant:
        return str(constant["ival"].get("ival", 0))
    if "fval" in constant:
        return str(constant["fval"].get("fval", ""))
    if "boolval" in constant:
        return "true" if constant["boolval"].get("boolval") else "false"
    return None


def variable_set_effects(statement: Node) -> tuple[Effect, ...]:
    """Effects of one VariableSetStmt."""
    name = statement.get("name", "").lower()
    local = bool(statement.get("is_local"))
    match statement.get("kind"):
        case "VAR_RESET_ALL":
            return (Effect(EffectKind.RESET_ALL),)
        case "VAR_SET_MULTI":
            return _characteristics(statement) if statement.get("name") == "SESSION CHARACTERISTICS" else ()
        case "VAR_SET_DEFAULT" | "VAR_RESET":
            if name == "session_authorization":
                return (_session_authorization("", local),)
            return (Effect(EffectKind.RESET_LOCAL if local else EffectKind.RESET, name),)
        case "VAR_SET_VALUE":
            value = _flatten(name, statement.get("args", ()))
        case _:  # SET ... FROM CURRENT
            value = None
    if name == "session_authorization" and value is not None:
        return (_session_authorization(value, local),)
    return setting_effects(name, value, local)


def setting_effects(name: str, value: str | None, local: bool) -> tuple[Effect, ...]:
    """A setting takes a value. A search_path that leads into pg_temp makes plain CREATE TABLE temporary, so that pins
    as well.
    """
    effect = Effect(EffectKind.SET_LOCAL if local else EffectKind.SET, name, value)
    if name == "search_path" and (value is None or "pg_temp" in value.lower()):
        return (effect, _TEMPORARY_SCHEMA)
    return (effect,)


def set_config_effects(arguments: list[Node], runs_once: bool) -> tuple[Effect, ...]:
    """Effects of one call of set_config(name, value, is_local).

    Certain only where all arguments are constants or parameters and the call is evaluated exactly once; else the
    session is pinned, and the engine is asked later.
    """
    if len(arguments) != 3 or not runs_once:
        return (_COMPUTED,)
    name_node, value_node = (_uncast(argument, _TEXT_TYPES) for argument in arguments[:2])
    local_node = _uncast(arguments[2], _BOOLEAN_TYPES)
    numbers = tuple(int(node.get("ParamRef", {}).get("number", 0)) for node in (name_node, value_node, local_node))
    name, value, local = _string(name_node), _string(value_node), _boolean(local_node)
    is_reset = bool(value_node.get("A_Const", {}).get("isnull"))
    known = (name, value if not is_reset else "", local)
    if any(constant is None and not number for constant, number in zip(known, numbers, strict=True)):
        return (_COMPUTED,)
    if any(numbers):
        kind = EffectKind.SET_LOCAL if local else EffectKind.SET
        parameters = (numbers[0], numbers[1], numbers[2])
        return (Effect(kind, (name or "").lower(), value, parameters),)
    setting = (name or "").lower()
    if is_reset:
        return (Effect(EffectKind.RESET_LOCAL if local else EffectKind.RESET, setting),)
    return setting_effects(setting, value, bool(local))


def _session_authorization(role: str, local: bool) -> Effect:
    return Effect(EffectKind.SESSION_AUTHORIZATION, role, "local" if local else None)


def _characteristics(statement: Node) -> tuple[Effect, ...]:
    """SET SESSION CHARACTERISTICS AS TRANSACTION ...: the defaults of later transactions."""
    effects = []
    for argument in statement.get("args", ()):
        element = argument["DefElem"]
        name = _CHARACTERISTICS.get(element["defname"])
        if name is None:
            return (_COMPUTED,)
        value = constant_text(element.get("arg"))
        if name != "default_transaction_isolation":
            value = "on" if value == "1" else "off"
        effects.append(Effect(EffectKind.SET, name, value))
    return tuple(effects)


def _flatten(name: str, arguments: list[Node]) -> str | None:
    texts = []
    for argument in arguments:
        text = constant_text(argument)
        if text is None:
            return None
        is_string = "sval" in argument["A_Const"]
        texts.append(quote_identifier(text) if is_string and name in _QUOTED_LISTS else text)
    return ", ".join(texts)


def quote_identifier(name: str) -> str:
    """As PostgreSQL's quote_identifier, but quoting every name that is not plain lower case: the setting reads the
    same.
    """
    if name and name.isascii() and name.replace("_", "a").isalnum() and name == name.lower() and not name[0].isdigit():
        return name
    return '"' + name.replace('"', '""') + '"'


def _uncast(node: Node, types: frozenset[str]) -> Node:
    """What `node` casts, where the cast changes nothing."""
    while "TypeCast" in node and strings(node["TypeCast"]["typeName"].get("names"))[-1] in types:
        node = node["TypeCast"].get("arg", {})
    return node


def _string(node: Node) -> str | None:
    return constant_text(node) if "sval" in node.get("A_Const", {}) else None


def _boolean(node: Node) -> bool | None:
    """The value of a boolean constant: true, 't'::bool, 'on'."""
    constant = node.get("A_Const", {})
    if "sval" not in constant and "boolval" not in constant:
        return None
    word = (constant_text(node) or "").strip().lower()
    return True if word in _TRUE_WORDS else False if word in _FALSE_WORDS else None
