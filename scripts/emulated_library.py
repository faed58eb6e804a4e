"""Builds of the emulated device (kernels/host) other than the tests' own, and the tests on them."""
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMPILER = os.environ.get("CXX", "c++")
CHECK = "emulated::selftest::operations"


def flags():
    """Those of the tests' own build."""
    text = (ROOT / "tests" / "emulated" / "library.rs").read_text()
    return re.findall(r'^\s*"([^"]*)"', re.search(r"const FLAGS: &\[&str\] = &\[(.*?)\];", text, re.S)[1], re.M)


def sources(root=ROOT):
    return [*sorted((root / "kernels" / "op").glob("*.cu")), root / "kernels" / "host" / "emulator.cpp",
            root / "tests" / "emulated" / "instructions.cu"]


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}{done.stdout}")
    return done.stdout


def compile_all(files, folder, extra=()):
    """The objects of the files, in their order."""
    def one(source):
        result = folder / f"{source.stem}.o"
        run(COMPILER, *flags(), *extra, "-x", "c++", "-c", "-o", result, source)
        return result
    folder.mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, files))


def link(objects, library, extra=()):
    run(COMPILER, "-shared", *extra, "-o", library, *objects)


def test_binary():
    """The tests, built where they are not yet."""
    lines = run("cargo", "test", "--release", "--locked", "--no-run", "--message-format", "json").splitlines()
    for message in map(json.loads, lines):
        if message.get("executable") and message.get("target", {}).get("name") == "all":
            return message["executable"]
    sys.exit("cargo names no test binary")


def test(binary, library, filters=(CHECK,), **variables):
    """(whether the tests passed, what they printed)."""
    environment = dict(os.environ, EMULATED_LIBRARY=str(library), **variables)
    done = subprocess.run([binary, *filters], capture_output=True, text=True, env=environment, cwd=ROOT,
                          errors="replace")
    output = done.stdout + done.stderr
    if done.returncode == 0 and " 0 passed" in output:
        sys.exit(f"no test is called {filters}")
    return done.returncode == 0, output
