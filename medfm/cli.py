"""`medfm <verb> key=value ...`"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence

from medfm.errors import ConfigError, MedfmError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 done, 2 a person's mistake (said in one message), 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except MedfmError as error:
        print(f"medfm: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        print("medfm: interrupted; the same command goes on where it stopped", file=sys.stderr)  # noqa: T201
        return 130
    except BrokenPipeError:
        return 0


def _say(text: str) -> None:
    print(text)  # noqa: T201


def _dispatch(words: list[str]) -> int:
    from medfm.config.verbs import VERBS

    if not words or words[0] in ("-h", "--help", "help"):
        _say(_help())
        return 0
    if words[0] in ("-V", "--version", "version"):
        from medfm import __version__

        _say(f"medfm {__version__}")
        return 0
    if words[0] == "recipes":
        return _recipes(words[1:])
    if words[0] == "validate":
        return _validate(words[1:])
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in VERBS:
            return _run(name, words[length:])
    groups = [name for name in VERBS if name.startswith(f"{words[0]} ")]
    if groups:
        raise ConfigError(f"'medfm {words[0]}' needs one of: {', '.join(n.split()[1] for n in groups)}")
    from medfm.registry import suggest

    known = [*VERBS, "recipes", "validate"]
    raise ConfigError(f"unknown verb '{words[0]}'{suggest(words[0], known) or '; known: ' + ', '.join(known)}")


def _help() -> str:
    from medfm import __version__
    from medfm.config.verbs import VERBS

    width = max(len(name) for name in VERBS)
    lines = [f"medfm {__version__}: foundation models for medical imaging", "", "  medfm <verb> key=value ...", ""]
    lines += [f"  {v.name:<{width}}  {v.help}" for v in VERBS.values()]
    lines += [
        f"  {'recipes':<{width}}  list recipes; show NAME; copy NAME [to=FILE]",
        f"  {'validate':<{width}}  check a recipe and overrides without running: validate recipe=NAME key=value ...",
        "",
        "Examples:",
    ]
    lines += [f"  {v.example}" for v in VERBS.values()]
    more = "`medfm <verb> --help` lists the keys of a verb, `medfm pretrain objective=dino --help` also those of an objective."
    return "\n".join([*lines, "", more])


def _run(name: str, words: list[str]) -> int:
    from medfm.config.verbs import VERBS

    if any(w in ("-h", "--help") for w in words):
        from medfm.config.describe import describe

        chosen = dict(word.split("=", 1) for word in words if "=" in word)
        _say(describe(VERBS[name], {key.removesuffix(".name"): value for key, value in chosen.items()}))
        return 0
    from medfm.api import call
    from medfm.config.describe import schema_of
    from medfm.config.overrides import text_keys

    verb = VERBS[name]
    if verb.positional and words and "=" not in words[0]:
        words = [f"{verb.positional}={words[0]}", *words[1:]]
    values, recipe = _words(words, text_keys(schema_of(verb)))
    if recipe is not None and "recipe" in schema_of(verb).model_fields:
        values["recipe"], recipe = recipe, None  # a knob of the verb's own, not what drives it
    if verb.recipes and recipe is None:
        from medfm.config.recipes import list_recipes

        known = ", ".join(sorted(r.name for r in list_recipes(name)))
        raise ConfigError(f"'medfm {name}' needs recipe=NAME or recipe=FILE.yaml; known: {known}")
    call(name, recipe, values, quiet=False)
    return 0


def _words(words: list[str], texts: Collection[str] = ()) -> tuple[dict[str, object], str | None]:
    from medfm.config.overrides import parse_words

    values = parse_words(words, texts)
    recipe = values.pop("recipe", None)
    return values, None if recipe is None else str(recipe)


def _validate(words: list[str]) -> int:
    from medfm.api import resolve_verb

    values, recipe = _words(words)
    verb = str(values.pop("verb", "pretrain"))
    if recipe is None:
        raise ConfigError("'medfm validate' needs recipe=NAME or recipe=FILE.yaml")
    resolved = resolve_verb(verb, recipe, values)
    _say(f"recipe '{recipe}' ({resolved.recipe}) is valid")
    return 0


def _recipes(words: list[str]) -> int:
    from medfm.config.recipes import find_recipe, list_recipes

    if not words:
        recipes = list_recipes()
        width = max((len(f"{r.verb} {r.name}") for r in recipes), default=0)
        for r in recipes:
            _say(f"{f'{r.verb} {r.name}':<{width}}  {r.path}  ({r.place})")
        return 0
    action, *rest = words
    names = [w for w in rest if "=" not in w]
    values, _ = _words([w for w in rest if "=" in w])
    unknown = set(values) - {"to", "verb"}
    if action not in ("show", "copy") or len(names) != 1 or unknown:
        raise ConfigError("use 'medfm recipes', 'medfm recipes show NAME' or 'medfm recipes copy NAME [to=FILE.yaml]'")
    path = find_recipe(names[0], str(values.get("verb", "pretrain")))
    if action == "show":
        _say(path.read_text(encoding="utf-8").rstrip())
        return 0
    from pathlib import Path

    target = Path(str(values.get("to", path.name)))
    if target.is_dir():
        target = target / path.name
    if target.exists():
        raise ConfigError(f"'{target}' exists; nothing was copied. Choose another name with to=FILE.yaml")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"'{target}' cannot be written: {error.strerror}; choose another place with to=FILE.yaml") from None
    _say(f"{target}: edit it, then run with recipe=./{target}" if not target.is_absolute() else str(target))
    return 0


if __name__ == "__main__":
    sys.exit(main())
