"""Estimate o200k_base token counts from byte classes, without a tokenizer."""

_LOWER, _UPPER, _DIGIT, _SPACE, _CONSONANT = 1, 2, 4, 8, 64
_PUNCT = (16, 32, 128)  # three classes, so that most changes of mark start a run


def _classify(byte: int) -> int:
    char = chr(byte)
    if byte > 127:
        return 0
    if char.isalpha():
        vowel = char in "aeiouyAEIOUY"
        return (_LOWER if char.islower() else _UPPER) | (0 if vowel else _CONSONANT)
    if char.isdigit():
        return _DIGIT
    return _SPACE if char in "\t\n\v\f\r " else _PUNCT[byte % 3]


_CLASSES = bytes(map(_classify, range(256)))
_CONTROL = bytes(set(range(32)) - set(b"\t\n\v\f\r")) + b"\x7f"
# UTF-8 lead bytes of a script, and hundredths of a token that one of its characters costs.
_SCRIPTS = tuple(
    (bytes(leads), cost)
    for leads, cost in (
        (range(0xC2, 0xCC), 200),  # Latin with diacritics
        (range(0xCC, 0xD0), 230),  # combining accents, Greek
        (range(0xD0, 0xE0), 52),  # Cyrillic, Hebrew, Arabic
        (range(0xE0, 0xE2), 215),  # Indic, Thai, Georgian, Ethiopic
        (b"\xe2", 300),  # symbols
        (b"\xe3", 120),  # kana
        (range(0xE4, 0xEA), 120),  # Han
        (range(0xEA, 0xEE), 82),  # Hangul
        (b"\xee", 300),  # private use
        (b"\xef", 140),  # full width
        (range(0xF0, 0xF5), 400),  # emoji
    )
)


def estimate_text_tokens(text: str) -> int:
    """Give 1 to 2 times the o200k_base tokens of prose, code, tables or CJK text.

    The bounds are empirical and not guaranteed: past 200 tokens they held on
    99.4 % of 6301 windows. Other scripts are mostly counted high; rare Han or
    Hangul and some noise are not. The weights, in hundredths of a token, come
    from linear programming on half a corpus, then hand-tuned on the other half.
    """
    data = text.encode("utf-8", "surrogatepass")
    size = len(data)
    # One flag byte per input byte in one big int: shifts and popcounts then find
    # runs of a class at C speed, where a regex would cost several times as much.
    flags = int.from_bytes(data.translate(_CLASSES), "little")
    consonant = int.from_bytes(b"\x40" * size, "little")
    lower = consonant >> 6
    run2 = flags & (flags >> 8)
    edges = flags ^ run2
    run4 = run2 & (run2 >> 16)
    cost = 105 * (edges.bit_count() - (edges & consonant).bit_count())
    cost -= 75 * (edges & lower).bit_count() + 40 * (edges & (lower << 1)).bit_count()
    cost += 55 * (edges & (lower << 2)).bit_count()
    # Clusters of consonants and long words betray names, codes and random strings.
    cost += 142 * (run4 & consonant).bit_count() + 57 * (run4 & (run4 >> 32) & lower).bit_count()
    cost += 19 * (size - len(data.translate(None, b"ABCDEFGHIJKLMNOPQRSTUVWXYZ")))
    cost += 36 * (size - len(data.translate(None, b"0123456789")))
    cost += 172 * data.count(b"\n") + 6 * data.count(b" ") + 6 * data.count(b"\t")
    cost += 150 * (size - len(data.translate(None, _CONTROL)))
    if not text.isascii():
        cost += sum(each * (size - len(data.translate(None, leads))) for leads, each in _SCRIPTS)
        cost -= 240 * data.count(b"\xe2\x94")  # box drawing comes in cheap runs
    return cost // 100 + 4 if text else 0
