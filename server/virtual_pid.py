def rewrite(text, pid, mapping):
    return text
