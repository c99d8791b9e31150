r"""The one number that a text is, exactly.

Read are decimals (`1,234.5`, `1 234`, `.5`), fractions and mixed ones (`-3/4`, `1 1/2`, `½`, `\frac{3}{4}`), powers (`10^2`,
`10²`, `2^{10}`), scientific notation (`2e-3`, `3 × 10^8`, `3\times10^8`), words of magnitude (`7 million`, `2 dozen`), a currency
in front and a unit behind. What would be another number without what stands beside it is no number: `3π`, `5i`, `5!`, `5x`.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
RAISED = re.compile(r"[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
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
    (?:\s*(?P<magnitude>{"|".join(MAGNITUDES)})s?\b)?
    (?P<unit>.*)
    """,
    re.VERBOSE,
)
# one letter is a unit only where it is nobody's variable or constant
WORD = r"(?:[mshgtdlLNJWVAKCFTHΩµ]|[^\W\d_]{2,20})"
UNIT = re.compile(
    rf"\s*[%°$€£¥¢]*(?:{WORD}[%°]?(?:[ \-·*]+{WORD}){{0,3}}(?:\s*/\s*{WORD})?(?:\s*\^\s*\{{?-?[23]\}}?)?)?\s*\.?"
)
NO_UNIT = re.compile(  # words after which it is another number, or none
    rf"\b(?:and|or|to|not|no|than|is|if|more|less|times|plus|minus|over|by|divided|multiplied|squared|cubed|power|root|factorial|"
    rf"pi|tau|phi|infinity|inf|half|halves|(?:third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth|twelfth|twentieth|hundredth|"
    rf"thousandth|millionth|billionth)s?|st|nd|rd|th|am|pm|at|about|negative|remainder|base|hex|binary|octal|mod|log|ln|sin|cos|sqrt|"
    rf"bn|mn|mln|mil|mio|quadrillions?|quintillions?|lakhs?|crores?|(?:{'|'.join(MAGNITUDES)})s?)\b",
    re.IGNORECASE,
)
LATEX_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
LATEX_NOISE = re.compile(
    r"\\(?:text|mathrm|mbox|textbf|boxed)\s*\{([^{}]*)\}|\\[,;! ]|\\\(|\\\)|\$(?!\s*[\d.+-])|(?<=\\)%"
)


def superscripts_written_out(text: str) -> str:
    """`10²` as `10^2`, and a fraction like `½` set off from the digit in front of it."""
    raised = RAISED.sub(lambda match: f"^{match[0].translate(SUPERSCRIPTS)}", text)
    return "".join(_fraction(letter) for letter in raised)


def _fraction(letter: str) -> str:
    written = unicodedata.normalize("NFKC", letter)
    return f" {written.replace(chr(0x2044), '/')}" if chr(0x2044) in written and len(written) > 1 else letter


def number_of(text: str) -> Fraction | None:
    """The number that a text is; None where it is anything else."""
    match = NUMBER.fullmatch(_plain(text))
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
    number = (number + int(match["whole"] or 0)) * MAGNITUDES.get(match["magnitude"] or "", 1)
    return -number if match["sign"] == "-" else number


def _plain(text: str) -> str:
    """LaTeX, typographic signs and emphasis in plain letters."""
    text = LATEX_FRACTION.sub(lambda match: f" {match[1] or match[2]}/{match[3] or match[4]}", text)
    text = (
        text.replace("{,}", ",").replace("\\times", "×").replace("\\cdot", "×").replace("\\%", "%").replace("\\$", "$")
    )
    text = LATEX_NOISE.sub(lambda match: f" {match[1] or ''}", text)
    text = "".join("-" if letter in "−–" else letter for letter in superscripts_written_out(text))
    return text.replace("\u200b", "").strip().strip("*").strip()
