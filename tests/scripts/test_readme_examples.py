"""The program that pastes the README's examples, on small pages; and that the README's own commands parse."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import readme_examples
from command_lines import parse_command_line
from readme_examples import Command, File, read_page, run_page

ROOT = Path(__file__).resolve().parents[2]
PAGE = """# A page

```sh
export WORD=hello    # holds for what follows
echo "a # that is none" \\
    '# nor this' \\# and$WORD#too   # a comment

# a comment alone
false    # exit code 1
exit 3   # exit code 0 or 3, the verdict
```

```text
echo never
```

```toml
# made.toml: a file
[model]
path = "x"
```

```toml
[no name]
```

Text, and the last block:

```sh
cat made.toml
false
echo slow
read word || echo nothing to read
printf '%s\\n\\n' "$WORD" last
```
"""


def test_commands_and_files_are_read_in_the_order_of_the_page() -> None:
    steps = read_page(PAGE)
    assert steps[1] == Command(5, "echo \"a # that is none\" \\\n    '# nor this' \\# and$WORD#too   # a comment", (0,))
    assert isinstance(steps[1], Command)
    assert steps[1].bare == "echo \"a # that is none\" '# nor this' \\# and$WORD#too"
    assert [(step.line, step.bare, step.expected) for step in steps[2:4] if isinstance(step, Command)] == [
        (9, "false", (1,)),
        (10, "exit 3", (0, 3)),
    ]
    assert steps[4] == File(18, "made.toml", '# made.toml: a file\n[model]\npath = "x"\n')
    assert len(steps) == 10


def test_what_passed_failed_and_was_skipped_is_printed_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text(PAGE)
    monkeypatch.setattr(sys, "argv", ["readme_examples", "--folder", str(tmp_path), "--skip", "slo+w"])
    assert readme_examples.main() == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == ["1 skipped", "7 passed, 1 failed"]
    assert "line 18: wrote made.toml" in said
    exported = said.index("line 4: $ export WORD=hello")
    assert said[exported + 2].startswith("line 5: ")  # it says nothing, so nothing is repeated
    ends = {
        line.split("$ ")[1]: (said[number + 1].split(",")[0:2], said[number + 2].strip())
        for number, line in enumerate(said)
        if "$ " in line and "skipped" not in said[number + 1]
    }
    assert ends["echo \"a # that is none\" '# nor this' \\# and$WORD#too"] == (
        ["    passed: exit code 0", " expected 0"],
        "a # that is none # nor this # andhello#too",
    )
    assert ends["exit 3"][0] == ["    passed: exit code 3", " expected 0 or 3"]
    assert ends["cat made.toml"][1] == 'path = "x"'
    assert ends["false"][0] == ["    FAILED: exit code 1", " expected 0"]  # the second one
    assert ends["read word || echo nothing to read"][1] == "nothing to read"
    assert ends["printf '%s\\n\\n' \"$WORD\" last"][1] == "last"
    assert said[said.index("line 32: $ echo slow") + 1] == "    skipped"


def test_another_file_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text(PAGE)
    (tmp_path / "made.toml").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["readme_examples", "--folder", str(tmp_path), "--only", "cat"])
    assert readme_examples.main() == 1
    assert capsys.readouterr().out.splitlines()[-2:] == ["8 skipped", "1 passed, 1 failed"]
    assert (tmp_path / "made.toml").read_text() == "mine"


def test_a_command_that_takes_too_long_is_stopped_and_has_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_page(read_page("```sh\necho begun; sleep 60 | cat\necho on\n```\n"), tmp_path, seconds=0.5) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("    FAILED: exit code -9, expected 0, ")
    assert said[2:] == ["    begun", "line 3: $ echo on", *said[4:5], "    on", "0 skipped", "1 passed, 1 failed"]


@pytest.mark.parametrize("arguments", [[], ["--folder", "/nowhere"], ["--folder", str(ROOT), "--skip", "("]])
def test_wrong_arguments_exit_2(arguments: list[str]) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "readme_examples.py"), *arguments]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2


README = [step for step in read_page((ROOT / "README.md").read_text(encoding="utf-8")) if isinstance(step, Command)]


@pytest.mark.parametrize("line", [step.bare for step in README if step.bare.startswith("gguf-forget ")])
def test_every_command_of_the_readme_parses(line: str) -> None:
    assert parse_command_line(line) == line.split()[1]


@pytest.mark.parametrize(
    "program", sorted({word for step in README for word in step.bare.split() if "scripts/" in word})
)
def test_every_script_of_the_readme_is_there(program: str) -> None:
    assert (ROOT / program).is_file()
