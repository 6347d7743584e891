"""What API pages cannot take from docstrings: shapes in comments beside arguments, and links in Sphinx's notation."""

import ast
import inspect
import re
import textwrap
from typing import Any

from griffe import Alias, Attribute, Class, Extension, Function, Module, Object

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`(~?)([\w.]+)`")


class Docstrings(Extension):
    """Rewrites docstrings before they are rendered; the files stay as they are."""

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        """Visit every object of a package that has been read."""
        self._visit(pkg)
        _unhide(pkg)

    def _visit(self, parent: Object) -> None:
        for member in parent.members.values():
            if member.is_alias:
                continue
            if isinstance(member, Function):
                _add_shapes(member)
            elif isinstance(member, Class | Module):
                self._visit(member)
                if isinstance(member, Class):
                    _add_fields(member)
            elif isinstance(member, Attribute) and parent.is_module and member.name.isupper():
                _hide_constant(member, parent)
            _link(member)
        if parent.is_module and parent.parent is None:
            _link(parent)


def _unhide(module: Module) -> None:
    """Let a function come before the submodule of the same name, which is what an import gives."""
    for name, target in module.imports.items():
        hidden = module.members.get(name)
        if isinstance(hidden, Module) and target == f"{hidden.path}.{name}":
            module.members[name] = Alias(name, hidden.members[name], parent=module)
    for member in list(module.members.values()):
        if isinstance(member, Module):
            _unhide(member)


def comments(function: Function) -> dict[str, str]:
    """Comments of a function's arguments by name; that behind its last line is called ``return``.

    A comment between two arguments belongs to the first of them.
    """
    lines = textwrap.dedent("\n".join(function.lines)).splitlines()
    node = next(iter(ast.parse("\n".join(lines)).body), None)
    if not isinstance(node, ast.FunctionDef):
        return {}
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    by_line = {argument.lineno: argument.arg for argument in given}
    last = max([node.lineno, *by_line, getattr(node.returns, "lineno", 0)])
    found = {}
    for number in range(node.lineno, last + 1):
        _, mark, text = lines[number - 1].partition("  # ")
        if mark and not text.startswith(("fmt:", "noqa", "type:")):
            is_end = number == last and lines[number - 1].partition("  # ")[0].endswith(":")
            found["return" if is_end else by_line.get(number, "return")] = text.strip()
    return found


def _add_shapes(function: Function) -> None:
    """Put the comments into the docstring, before the meaning of the argument, or as an entry of its own."""
    found = comments(function)
    if not found or function.docstring is None:
        return
    text = inspect.cleandoc(function.docstring.value)
    returned = found.pop("return", None)
    missing = []
    for name, comment in found.items():
        entry = re.compile(rf"^(    {name}: )", re.MULTILINE)
        if "\nArgs:" in text and entry.search(text):
            text = entry.sub(lambda match, c=comment: f"{match[1]}{_code(c)}; ", text, count=1)
        else:
            missing.append(f"    {name}: {_code(comment)}")
    if missing:
        entries = "\n".join(missing)
        if "\nArgs:\n" in text:
            section = re.compile(r"\nArgs:\n(?:    .*\n?)+")
            text = section.sub(lambda match: f"{match[0].rstrip()}\n{entries}\n", text, count=1)
        else:
            text = _with_paragraph(text, f"Args:\n{entries}")
    if returned is not None:
        what = "Shapes" if "->" in returned else "Returned shape"
        text = _with_paragraph(text, f"{what}: {_code(returned)}.")
    function.docstring.value = text


def _with_paragraph(text: str, paragraph: str) -> str:
    """A docstring with a paragraph, or a section, before its first section."""
    match = re.search(r"^(Args|Returns|Raises|Yields):\n", text, re.MULTILINE)
    head, tail = (text, "") if match is None else (text[: match.start()], text[match.start() :])
    return f"{head.rstrip()}\n\n{paragraph}\n\n{tail}".rstrip()


def _code(comment: str) -> str:
    """A comment with its shapes as code: ``[B, F], or [B] in seconds`` has two."""
    return re.sub(r"(\[[^\[\]]*\](?: -> )?)+", lambda match: f"``{match[0].strip()}``", comment)


def _add_fields(cls: Class) -> None:
    """List the fields of a class that have comments beside them instead of docstrings."""
    entries = []
    for name, field in cls.members.items():
        if isinstance(field, Attribute) and field.docstring is None and not name.startswith("_"):
            code, mark, text = "\n".join(field.lines).partition("  # ")
            if mark:
                kind = code.partition(":")[2].partition(" = ")[0].strip()
                entries.append(f"    {name} ({kind}): {_code(text.strip())}")
    if entries and cls.docstring is not None:
        text = inspect.cleandoc(cls.docstring.value)
        cls.docstring.value = _with_paragraph(text, "Attributes:\n" + "\n".join(entries))


def _hide_constant(constant: Attribute, module: Object) -> None:
    """Leave out a constant that the module does not export: what has no docstring is not shown."""
    if constant.name not in map(str, module.exports or ()):
        constant.docstring = None


def _link(member: Object) -> None:
    """Sphinx's roles, such as ``:func:`train```, as links to what the pages show; to others as plain code."""
    if member.docstring is not None:
        text = re.sub(r"::$", ":", member.docstring.value, flags=re.MULTILINE)  # the code below is indented anyway
        member.docstring.value = ROLE.sub(lambda match: _reference(member, match[2], bool(match[1])), text)


def _reference(member: Object, name: str, is_short: bool) -> str:
    shown = name.rpartition(".")[2] if is_short else name
    return f'<autoref optional identifier="{_full(member, name)}"><code>{shown}</code></autoref>'


def _full(member: Object, name: str) -> str:
    """The dotted path of a name as the docstring of ``member`` sees it."""
    if name.startswith("vampo_core"):
        return name
    first, dot, rest = name.partition(".")
    scope: Object | None = member
    while scope is not None:
        if first in scope.members:
            found = scope.members[first]
            return f"{found.target_path if found.is_alias else found.path}{dot}{rest}"
        scope = scope.parent
    return name
