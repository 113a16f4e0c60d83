"""Do what a newcomer can do: `make everything`, or `python scripts/everything.py`.

Every target of the Makefile and every command of README, CONTRIBUTING and the documentation is done in a
fresh clone of what is committed, with an empty environment. The table at the end says how long each took.
What needs a GPU, hours or data is not done, and the table says so; of a training its settings are read.
`--list` shows what there is to do. `--only docs` does what has this in it."""
import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = "gnosis-[a-z-]+|make|python|source"
SHORT = "make |source |digits|--help|--cost|gnosis-runs (demo|--by)|benchmark.py callbacks|rehearsal"
REASONS = [  # why other commands are not done; the first that is found counts
    ("scale=medium|device=cuda|gpu_day", "a GPU"),
    ("--plan", "the data sets of a figure"),
    ("slurm", "a Slurm cluster"),
    ("dataset=imagenet|table2_imagenet", "ImageNet"),
    ("weights=", "published weights"),
    ("gnosis-runs", "runs with this name"),
    ("", "its data set, and hours"),
]
TRAINING = "gnosis-(image-classification|text-classification|image-generation|teacher-outputs)"
READ = """import sys
from gnosis_nb.cli import compose_sweep
compose_sweep([o for o in sys.argv[2:] if o not in ('-m', '--texts')], sys.argv[1])"""


@dataclass
class Command:
    text:str
    where:str  # the first page that has it
    seconds:float|None = None
    result:str = ""


# What there is to do

def targets():
    "Names of the Makefile's targets for people, in its order."
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return re.search(r"^\.PHONY:(.*)", text, re.M)[1].split()


def pages():
    "Pairs of a page's path and its prose."
    for name in ("README.md", "CONTRIBUTING.md"):
        yield name, (ROOT / name).read_text(encoding="utf-8")
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" not in path.parts:
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            prose = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
            yield path.relative_to(ROOT / "nbs").as_posix(), "\n\n".join(prose)


def page_commands(text):
    "Commands of a page: lines of blocks without a language, and code in the text. Variables are filled in."
    values, found = {}, []
    for block, inline in re.findall(r"^```\n(.*?)^```|(?<!`)`([^`\n]+)`(?!`)", text, re.M | re.S):
        for line in re.sub(r"\\\n\s*", "", block or inline).splitlines():
            line = re.sub(r"\s+#.*", "", line.strip())
            if m := re.fullmatch(r"(\w+)=(['\"])(.*)\2", line):
                values[m[1]] = m[3]
            line = re.sub(r"\$(\w+)", lambda m: values.get(m[1], m[0]), line)
            if re.match(rf"({PROGRAMS}) ", line) and not re.search("[<…]", line):
                found.append(line)
    return found


def documented():
    "Every command of the documentation once, with the page that has it first."
    found = {}
    for where, text in pages():
        for o in page_commands(text):
            found.setdefault(o, where)
    return [Command(text, where) for text, where in found.items()]


def everything():
    "What a newcomer can do, in an order in which it can be done."
    def is_long(name): return name.startswith("test")

    named = sorted((o for o in targets() if o not in ("everything", "clean")), key=is_long)
    made = [Command(f"make {o}", "Makefile") for o in named]
    rest = [o for o in documented() if o.text not in {f"make {name}" for name in targets()}]
    commands = [*made, *rest, Command("make clean", "Makefile")]
    for o in commands:
        if o.text == "make lab":
            o.text += " LAB_FLAGS=--version"                 # it would serve until it is stopped
    return commands


def why_not(text):
    "What a command needs that is not here; None if it is done."
    if re.search(SHORT, text) and "imagenet" not in text:
        return None
    return next(why for found, why in REASONS if re.search(found, text))


def reading(text):
    "A command that only reads the settings of a training; None for other commands."
    m = re.match(TRAINING, text)
    if not m:
        return None
    command = "text_classification" if "--texts" in text else m[1].replace("-", "_")
    command = command.replace("teacher_outputs", "image_classification")
    return shlex.join(["python", "-c", READ, command, *shlex.split(text)[1:]])


# Doing it

def do(command, clone, log, minutes):
    "Run one command as in a new terminal, with the clone's environment. Notes time and result."
    needs = why_not(command.text)
    script = reading(command.text) if needs else command.text
    if not script:
        command.result = f"not run: needs {needs}"
        return
    system = "/usr/local/bin:/usr/bin:/bin"
    own = "" if script.startswith("make ") else f"{clone}/.venv/bin:"
    env = dict(HOME=os.environ["HOME"], PATH=f"{own}{system}", LANG="C.UTF-8")
    if script.startswith("make "):
        script += f" PYTHON={sys.executable}"
    begun = time.monotonic()
    with open(log, "a", encoding="utf-8") as out:
        print(f"\n$ {script}", file=out, flush=True)
        process = subprocess.Popen(["bash", "-c", script], cwd=clone, env=env, stdin=subprocess.DEVNULL,
                                   stdout=out, stderr=out, start_new_session=True)
        try:
            status = process.wait(60 * minutes)
        except subprocess.TimeoutExpired:
            status = f"stopped after {minutes:g} minutes"
            os.killpg(process.pid, signal.SIGKILL)
    command.seconds = time.monotonic() - begun
    fine = f"settings read; not run: needs {needs}" if needs else "ok"
    command.result = fine if status == 0 else f"failed: {status}"


def table(commands):
    "A Markdown table of what was done."
    lines = ["| command | of | seconds | |", "|---|---|---|---|"]
    for o in commands:
        seconds = "" if o.seconds is None else f"{o.seconds:.0f}"
        text = o.text.replace("|", "\\|")
        lines.append(f"| `{text}` | {o.where} | {seconds} | {o.result} |")
    return "\n".join(lines)


def main():
    as_it_is = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_it_is)
    parser.add_argument("--list", action="store_true", help="do nothing")
    parser.add_argument("--only", default="", metavar="REGEX", help="commands in which this is found")
    parser.add_argument("--clone", type=Path, metavar="FOLDER", help="where the clone goes, and stays")
    parser.add_argument("--minutes", type=float, default=30, help="for each command (default: %(default)g)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the table there, too")
    a = parser.parse_args()
    commands = [o for o in everything() if re.search(a.only, o.text)]
    if a.list:
        for o in commands:
            needs = why_not(o.text)
            o.result = f"needs {needs}" if needs else ""
        print(table(commands))
        return
    with tempfile.TemporaryDirectory() as temporary:
        clone = a.clone or Path(temporary) / "gnosis_nb"
        if not clone.exists():
            subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
        log = clone.parent / f"{clone.name}.log"
        for o in commands:
            do(o, clone, log, a.minutes)
            print(f"{o.seconds or 0:6.0f} s  {o.result:10}  {o.text}", flush=True)
            if o.result.startswith("failed"):
                print("\n".join(log.read_text(encoding="utf-8").splitlines()[-15:]), flush=True)
    text = f"{date.today()}, {os.cpu_count()} CPU cores\n\n{table(commands)}\n"
    print(f"\n{text}")
    if a.table:
        a.table.write_text(text, encoding="utf-8")
    if failed := [o.text for o in commands if o.result.startswith("failed")]:
        sys.exit("failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
