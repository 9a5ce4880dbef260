"""`clusternode completion`: completion scripts for shells, made from the parsers."""

from __future__ import annotations

import argparse
import shlex

from clusternode.cli.output import printable
from clusternode.cli.parsing import OK, Parsers, add_command

BASH = """\
# bash completion of clusternode: source <(clusternode completion bash)
_clusternode() {
    local IFS=$' \\t\\n' current="${COMP_WORDS[COMP_CWORD]}" words=
    local second="${COMP_WORDS[2]}"
    if [[ $COMP_CWORD -eq 2 ]]; then second=; fi
    case "${COMP_WORDS[1]} $second " in
%(cases)s
        *) words=%(top)s ;;
    esac
    if [[ $COMP_CWORD -eq 1 ]]; then words=%(top)s; fi
    local action="${COMP_WORDS[2]}/$COMP_CWORD" before="${COMP_WORDS[COMP_CWORD-1]}"
    if [[ ${COMP_WORDS[1]} == kafka ]] &&
        [[ $action =~ ^(%(named)s)/3$ || $before == --connection ]]; then
        local names="$("${COMP_WORDS[0]}" kafka status --names 2>/dev/null)"
        words="$words ${names//[^A-Za-z0-9._:[:space:]-]/}"
    fi
    COMPREPLY=( $(compgen -W "$words" -- "$current") )
    if [[ $current == @* ]]; then
        IFS=$'\\n'
        COMPREPLY=( $(compgen -P @ -f -- "${current#@}") )
    elif [[ ${COMP_WORDS[COMP_CWORD-1]} =~ ^(-c|--config|--socket|--state-dir)$ ]]; then
        IFS=$'\\n'
        COMPREPLY=( $(compgen -f -- "$current") )
    fi
}
complete -F _clusternode clusternode
"""
ZSH = """\
#compdef clusternode
# zsh completion of clusternode: source <(clusternode completion zsh)
autoload -U +X bashcompinit && bashcompinit
"""
NAMED = ("show", "send", "ensure-topic", "consumer")
"""Actions of `clusternode kafka` that begin with the name of a connection."""
FISH_HEAD = """\
# fish completion of clusternode: clusternode completion fish | source
"""


def add_parser(parsers: Parsers) -> None:
    parser = add_command(
        parsers,
        "completion",
        run=run,
        summary="print a completion script for a shell",
        examples="source <(clusternode completion bash)\nclusternode completion fish | source",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell")


def run(arguments: argparse.Namespace) -> int:
    if arguments.shell == "fish":
        print(fish(), end="")
    elif arguments.shell == "zsh":
        print(ZSH + _bash_function(), end="")
    else:
        print(_bash_function(), end="")
    return OK


def _vocabulary() -> tuple[list[tuple[str, str]], list[tuple[str, list[str], str]]]:
    """Return (command, summary) of the top, and (path, words after it, summary) of all."""
    from clusternode.cli.reference import children, commands, options  # a cycle

    top: list[tuple[str, str]] = []
    paths: list[tuple[str, list[str], str]] = []
    for words, parser in commands():
        summary = (parser.description or "").partition("\n")[0]
        if len(words) == 1:
            top.append((words[0], summary))
        names = [name for action in options(parser) for name in action.option_strings]
        choices = [
            str(choice)
            for action in parser._actions
            if not action.option_strings
            for choice in action.choices or ()
        ]
        paths.append(
            (" ".join(words), [*choices, *names] if not children(parser) else choices, summary)
        )
    return top, paths


def _bash_function() -> str:
    top, paths = _vocabulary()
    # The longest path first: `nodes list` before `nodes`.
    ordered = sorted(paths, key=lambda path: (-path[0].count(" "), path[0]))
    cases = "\n".join(_case(path, words) for path, words, _ in ordered)
    commands = shlex.quote(" ".join(name for name, _ in top))
    return BASH % {"cases": cases, "top": commands, "named": "|".join(NAMED)}


def _case(path: str, words: list[str]) -> str:
    return f"        {shlex.quote(path + ' ')}*) words={shlex.quote(' '.join(words))} ;;"


def fish() -> str:
    """Return the script for fish."""
    top, paths = _vocabulary()
    lines = [FISH_HEAD.rstrip()]
    for name, summary in top:
        lines.append(
            f"complete -c clusternode -n __fish_use_subcommand -a {name} -d {shlex.quote(summary)}"
        )
    for path, words, _ in paths:
        seen = " ".join(path.split()[-1:])
        for word in words:
            kind = f"-l {word[2:]}" if word.startswith("--") else f"-a {shlex.quote(word)}"
            if word.startswith("-") and not word.startswith("--"):
                kind = f"-s {word[1:]} -r"
            condition = shlex.quote(f"__fish_seen_subcommand_from {seen}")
            lines.append(f"complete -c clusternode -n {condition} {kind}")
    seen = f"__fish_seen_subcommand_from kafka; and __fish_seen_subcommand_from {' '.join(NAMED)}"
    names = "(clusternode kafka status --names 2>/dev/null)"
    lines.append(f"complete -c clusternode -n {shlex.quote(seen)} -f -a {shlex.quote(names)}")
    return printable_lines(lines)


def printable_lines(lines: list[str]) -> str:
    return "".join(printable(line) + "\n" for line in lines)
