r"""The one number that a text is, exactly.

Read are decimals (`1,234.5`, `1 234`, `.5`), fractions and mixed ones (`-3/4`, `1 1/2`, `½`, `\frac{3}{4}`), powers (`10^2`,
`10²`, `2^{10}`), scientific notation (`2e-3`, `3 × 10^8`, `3\times10^8`), words of magnitude (`7 million`, `2 dozen`), a currency
in front and a unit behind: a known symbol where nothing parts them, words of three letters or more behind a space. What would
be another number without what stands beside it is no number: `3π`, `5i`, `5!`, `5xy`, `5 point five`.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

LONGEST = 200  # characters; a longer text is no number


def _run_of(kind: str) -> str:
    """A pattern for letters set above or below the line; the signs of ordinals are letters of their own."""
    found = (chr(code) for code in range(0xB2, 0x2100) if code != 0xBA)
    return f"[{''.join(letter for letter in found if unicodedata.decomposition(letter).startswith(kind))}]+"


RAISED, LOWERED = (re.compile(_run_of(kind)) for kind in ("<super>", "<sub>"))
IN_FORMULA = re.compile(r"(?:(?<=[A-Z])|(?<=[A-Z][a-z])|(?<=[A-Z]\))|(?<=[A-Z][₀-₉]\)))[₀-₉]+")  # H₂O, Ca(OH)₂
VULGAR = re.compile(r"[¼½¾⅐-⅟↉](?P<joined>(?=\w))?")
MAGNITUDES = {
    "dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
}  # fmt: skip
MOST_DIGITS = 400  # of a power; nobody's answer has more

DECIMAL = r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}|\d{1,3}(?:[ \u00a0\u2009\u202f]\d{3})+|\d{1,40})(?:\.\d{0,40})?|\.\d{1,40}"
POWER = r"(?:\^|\*\*)\s*\{?\(?\s*([+-]?\d{1,4})\s*\)?\}?"
NUMBER = re.compile(
    rf"""
    (?:(?:[^\W\d_]\s*)?[=≈]\s*)?                           # x =
    [$€£¥]?\s*(?P<sign>[+-]?)\s*[$€£¥]?\s*
    (?:(?P<whole>\d{{1,40}})\s+(?=\d+\s*/))?               # of a mixed number
    (?P<digits>{DECIMAL})
    (?:[eE](?P<exponent>[+-]?\d{{1,3}}))?
    (?:\s*{POWER.replace("([+-]", "(?P<power>[+-]")})?
    (?:\s*[×x*·]\s*10\s*{POWER.replace("([+-]", "(?P<ten>[+-]")})?
    (?:\s*/\s*(?P<divisor>\d{{1,40}}))?
    (?:\s*(?P<magnitude>(?i:{"|".join(MAGNITUDES)}))s?\b)?
    (?P<unit>.*)
    """,
    re.VERBOSE,
)
# one letter is a unit only where it is nobody's variable or constant
SYMBOL = (
    r"(?:[mshgtdlLNJWVAKCFTHΩµ]|[kcdmµun]m|[km]?g|µg|kgs|[mcdµ]?[lL]|[mµun]s|[kMG]?Hz|[kMGTm]?W|[kMG]?Wh|[kMm]?[VAJN]|[kMG]?Ω|"
    r"[khMG]?Pa|[kMGT]?eV|[kKMGT]i?B|[kMG]bps|m?mol|k?cal|lbs?|oz|ft|in|yd|mi|mph|km/?h|kph|rpm|bar|atm|psi|dB|px|bits?|bytes?|"
    r"mins?|secs?|hrs?|yrs?|rad|deg|USD|EUR|GBP|percent|(?:degree|hour|minute|second|day|year|mile|meter|metre|dollar|cent|euro)s?)"
)
FOREIGN = r"[^\W\d_A-Za-z\u0370-\u03ff]"
FREE = rf"(?:{SYMBOL}|of|{FOREIGN}{{2}}|[^\W\d_]{{3,20}})"
FIRST = rf"(?:(?<=\s){FREE}|{SYMBOL}|[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]{{2,20}})"
UNIT = re.compile(
    rf"\s*[%°$€£¥¢]*(?:{FIRST}[%°]?(?:[ \-·*]+{FREE}){{0,3}}(?:\s*/\s*{FREE})?(?:\s*\^\s*\{{?-?[23]\}}?)?)?\s*\.?"
)
NO_UNIT = re.compile(  # words after which it is another number, or none
    rf"\b(?:and|or|to|not|no|than|is|if|more|less|times|plus|minus|over|under|below|above|out|v|vs|versus|against|by|divided|"
    rf"multiplied|doubled|halved|tripled|trebled|quadrupled|squared|cubed|power|root|factorial|infinity|inf|half|halves|mille|"
    rf"(?:third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth|twelfth|twentieth|hundredth|thousandth|millionth|"
    rf"billionth)s?|st|nd|rd|th|am|pm|at|about|negative|remainder|base|hex|binary|octal|mod|(?:log|ln|exp|sin|cos|tan|cot|sqrt)[xyz]?|"
    rf"alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|omicron|pi|rho|sigma|tau|upsilon|phi|chi|omega|"
    rf"point|zero|one|two|three|four|five|six|seven|eight|nine|tens?|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen|"
    rf"(?:twen|thir|for|fif|six|seven|eigh|nine)ty|score|gross|bn|mn|mln|mil|mio|quadrillions?|quintillions?|lakhs?|crores?|"
    rf"(?:{'|'.join(MAGNITUDES)})s?)\b|(?-i:[α-λν-ω][A-Za-z]|[A-Za-z][α-λν-ω])|[十百千万萬亿億兆]",
    re.IGNORECASE,
)
WIDE = re.compile(r"\s{2,}|[\t\n\r]")  # no space that parts thousands
LATEX_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
LATEX_NOISE = re.compile(
    r"\\(?:text|mathrm|mbox|textbf|boxed)\s*\{([^{}]*)\}|\\[,;! ]|\\\(|\\\)|\$(?!\s*[\d.+-])|(?<=\\)%"
)


def scripts_written_out(text: str) -> str:
    """`10²` as `10^2`, `101₂` as `101_2`, `H₂O` as `H2O`, and a fraction like `½` set off from what stands beside it."""
    text = IN_FORMULA.sub(lambda match: _plain_run(match[0]), text)
    text = RAISED.sub(lambda match: f"^{_plain_run(match[0])}", text)
    text = LOWERED.sub(lambda match: f"_{_plain_run(match[0])}", text)
    return VULGAR.sub(lambda match: f" {_plain_run(match[0])}{'' if match['joined'] is None else ' '}", text)


def _plain_run(letters: str) -> str:
    return unicodedata.normalize("NFKC", letters).replace("\u2212", "-").replace("\u2044", "/")


def number_of(text: str) -> Fraction | None:
    """The number that a text is; None where it is anything else."""
    short = WIDE.sub("  ", text.strip())
    match = NUMBER.fullmatch(_plain(short)) if len(short) <= LONGEST else None
    if match is None or not UNIT.fullmatch(match["unit"]) or NO_UNIT.search(match["unit"]):
        return None
    if match["whole"] and (match["divisor"] is None or not match["digits"].isdigit()):
        return None
    number = Fraction(re.sub(r"[^\d.]", "", match["digits"]).rstrip(".") or "0")
    number *= Fraction(10) ** int(match["exponent"] or 0)
    if match["power"] is not None:
        power = int(match["power"])
        if abs(power) * len(match["digits"]) > MOST_DIGITS or (number == 0 and power <= 0):
            return None
        number **= power
    if match["ten"] is not None:
        if abs(int(match["ten"])) > MOST_DIGITS:
            return None
        number *= Fraction(10) ** int(match["ten"])
    if match["divisor"] is not None:
        if int(match["divisor"]) == 0:
            return None
        number /= int(match["divisor"])
    number = (number + int(match["whole"] or 0)) * MAGNITUDES.get((match["magnitude"] or "").lower(), 1)
    return -number if match["sign"] == "-" else number


def _plain(text: str) -> str:
    """LaTeX, typographic signs and emphasis in plain letters."""
    text = LATEX_FRACTION.sub(lambda match: f" {match[1] or match[2]}/{match[3] or match[4]} ", text)
    text = (
        text.replace("{,}", ",").replace("\\times", "×").replace("\\cdot", "×").replace("\\%", "%").replace("\\$", "$")
    )
    text = LATEX_NOISE.sub(lambda match: f" {match[1] or ''}", text)
    text = "".join("-" if letter in "−–" else letter for letter in scripts_written_out(text))
    return text.replace("\u200b", "").replace("μ", "µ").replace("\u2126", "Ω").strip().strip("*").strip()
