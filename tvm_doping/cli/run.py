"""`tvm-doping run`: bundle and inputs -> outputs."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tvm_doping.cli.show import console, shape

if TYPE_CHECKING:
    import numpy as np

    from tvm_doping.remote import RemoteSession
    from tvm_doping.runtime import Session

_CHUNK = 256  # time steps at once: a text's logits, T x vocabulary, need not all fit in memory


def run(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.", metavar="BUNDLE")],
    inputs: Annotated[
        Path | None,
        typer.Argument(
            help="A .npy file (models of one input), a .npz file (inputs by name, state as state.NAME), "
            "or for language models and translators a text file.",
            metavar="INPUT",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Text for a language model or a translator, instead of a file.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File to write: .npy (one output alone), or .npz (outputs by name, state as state.NAME).",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Of a bundle for several targets, the one whose code to run: auto is the best that this CPU can run.",
        ),
    ] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Threads to run on.  [default: as compiled for]",
            show_default=False,
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="First run the bundle's golden input and compare.")
    ] = False,
    tracker: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Run it on a device that this RPC tracker lends (`farm --help`), not here.",
            show_default=False,
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(metavar="K", help="Key that the device is registered as.", show_default=False),
    ] = None,
) -> None:
    """Run a compiled model on a file or a text.

    Inputs have a time axis; the state starts from zero. For text, prints the perplexity and the tokens that
    are likeliest next; of a model that gives indices, how often the next token was among them. Of a classifier, each
    line is a text by itself, and its label is printed.

    Examples: tvm-doping run bundles/small --text "the company said"

    tvm-doping run bundles/speech frames.npy --out scores.npz

    tvm-doping run bundles/mt --text "two dogs run ."
    """
    from tvm_doping.errors import InvalidInput

    if (inputs is None) == (text is None):
        raise InvalidInput(
            "INPUT",
            "one file, or --text",
            "both" if text is not None else "neither",
            "See `tvm-doping run --help`.",
        )
    if out is not None and out.suffix not in (".npy", ".npz"):
        raise InvalidInput("--out", "a file that ends in .npy or .npz", str(out), "Name it that way.")
    if inputs is not None and not inputs.exists():
        raise InvalidInput(str(inputs), "a file of inputs", "no such file", "Check its path.")
    if (tracker is None) != (key is None) or (tracker is not None and threads is not None):
        raise InvalidInput(
            "--tracker", "--key beside it, and no --threads", "another choice", "Say --tracker H:P --key K."
        )
    if (bundle / "translator.json").is_file():
        for option, value in (("--out", out), ("--tracker", tracker)):
            if value is not None:
                needs = "none for a translator, which runs here and prints"
                raise InvalidInput(option, needs, str(value), "Leave it out.")
        _translate(bundle, text if inputs is None else _read_text(inputs), target, threads, verify)
        return
    with _opened(bundle, target, threads, verify, tracker, key) as session:
        if inputs is not None and inputs.suffix in (".npy", ".npz"):
            results = _run_arrays(session, inputs)
        else:
            words = text if inputs is None else _read_text(inputs)
            read = _run_lines if session.bundle.manifest.labels else _run_text
            results = read(session, words or "", keep=out is not None)
        _tell_target(session)
        if out is not None:
            _write(out, results, session)
            console().print(f"-> {out}")


def _translate(folder: Path, text: str | None, target: str, threads: int | None, verify: bool) -> None:
    """Print the translation of each line."""
    from tvm_doping.translating import TranslatorSession

    with TranslatorSession(folder, target=target, threads=threads) as translator:
        if verify:
            translator.verify()
        for line in (text or "").splitlines():
            (translation,) = translator.translate([line])
            typer.echo(translation)


def _opened(
    bundle: Path, target: str, threads: int | None, verify: bool, tracker: str | None, key: str | None
) -> Session | RemoteSession:
    from tvm_doping.runtime import load

    if tracker is None or key is None:
        return load(bundle, target=target, threads=threads, verify=verify)
    from tvm_doping.remote import load_remote  # loads the whole of TVM, which takes seconds

    return load_remote(bundle, tracker=tracker, key=key, target=target, verify=verify)


def _tell_target(session: Session | RemoteSession) -> None:
    of = session.bundle.targets
    console().print(f"by the code for {session.target}" + (f" (of {', '.join(of)})" if len(of) > 1 else ""))


def _run_arrays(session: Session | RemoteSession, path: Path) -> dict[str, np.ndarray]:
    specs = session.bundle.manifest.inputs
    arrays, state = _read_arrays(path, [spec.name for spec in specs])
    if state:
        session.state = state
    results = session.run(*arrays)
    named = _named(session, results)
    for name, array in named.items():
        numbers = f"{array.min():.6g} .. {array.max():.6g}, mean {array.mean():.6g}"
        console().print(f"{name}: {shape(array.shape)} {array.dtype}, {numbers}")
    return named


def _run_text(session: Session | RemoteSession, text: str, *, keep: bool) -> dict[str, np.ndarray]:
    """Feed the text token by token, and print what the outputs say of it."""
    import numpy as np

    from tvm_doping.cli.predictions import predictions_of
    from tvm_doping.text import decode, encode

    manifest = session.bundle.manifest
    tokens = encode(text, session.bundle.vocabulary, manifest.tokens)[:, None]
    tokens = tokens.astype(manifest.inputs[0].dtype)
    predictions = predictions_of(manifest, len(session.bundle.vocabulary))
    kept: list[dict[str, np.ndarray]] = []
    for start in range(0, len(tokens), _CHUNK):
        named = _named(session, session.run(tokens[start : start + _CHUNK]))
        predictions.add(list(named.values()), tokens[start + 1 : start + 1 + _CHUNK, 0])
        if keep:
            kept.append(named)
    screen = console()
    if len(tokens) > 1:
        screen.print(f"{len(tokens):,} tokens, {predictions.summary()}")
    words = (f"{decode(i, session.bundle.vocabulary)!r}{note}" for i, note in predictions.next())
    screen.print(f"next: {', '.join(words)}", markup=False)
    return {name: np.concatenate([part[name] for part in kept]) for name in kept[0]} if kept else {}


def _run_lines(session: Session | RemoteSession, text: str, *, keep: bool) -> dict[str, np.ndarray]:
    """Feed each line by itself, and print its label."""
    import numpy as np

    from tvm_doping.cli.predictions import label_of
    from tvm_doping.text import encode

    manifest, kept = session.bundle.manifest, []
    for line in filter(str.strip, text.splitlines() or [text]):
        tokens = encode(line, session.bundle.vocabulary, manifest.tokens)[:, None]
        session.reset()
        named = _named(session, session.run(tokens.astype(manifest.inputs[0].dtype)))
        console().print(label_of(list(named.values()), manifest), markup=False)
        kept.append(named)
    return {name: np.concatenate([part[name] for part in kept]) for name in kept[0]} if keep and kept else {}


def _named(
    session: Session | RemoteSession, results: np.ndarray | tuple[np.ndarray, ...]
) -> dict[str, np.ndarray]:
    arrays = results if isinstance(results, tuple) else (results,)
    return {spec.name: array for spec, array in zip(session.bundle.manifest.outputs, arrays, strict=True)}


def _read_arrays(path: Path, names: list[str]) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """The inputs in order, and the state by name; InvalidInput where the file does not hold exactly these."""
    import zipfile

    import numpy as np

    from tvm_doping.errors import InvalidInput

    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            found = {"": content} if isinstance(content, np.ndarray) else dict(content)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidInput(
            str(path),
            "NumPy arrays without Python objects",
            str(error) or "an empty file",
            "Write it with np.savez.",
        ) from error
    if "" in found and len(names) == 1:
        return [found[""]], {}
    state = {name.removeprefix("state."): array for name, array in found.items() if name.startswith("state.")}
    rest = {name: array for name, array in found.items() if not name.startswith("state.")}
    if set(rest) != set(names):
        raise InvalidInput(
            str(path),
            f"arrays named {', '.join(names)}",
            ", ".join(sorted(rest)) or "none",
            "Write it with np.savez(file, NAME=array, ...).",
        )
    return [rest[name] for name in names], state


def _read_text(path: Path) -> str:
    from tvm_doping.errors import InvalidInput

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            str(path), "a text file in UTF-8, or .npy or .npz", str(error), "Check its path and encoding."
        ) from error


def _write(path: Path, results: dict[str, np.ndarray], session: Session | RemoteSession) -> None:
    """Write the outputs under a temporary name, then in place: a reader never sees half a file."""
    import os

    import numpy as np

    from tvm_doping.errors import InvalidInput

    if path.suffix == ".npy" and len(results) != 1:
        raise InvalidInput(
            "--out", "a .npz file, as the model has several outputs", str(path), "Name it .npz."
        )
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            if path.suffix == ".npy":
                np.save(file, next(iter(results.values())), allow_pickle=False)
            else:
                state = {f"state.{name}": array for name, array in session.state.items()}
                np.savez(file, **results, **state)  # type: ignore[arg-type]
        os.replace(temporary, path)
    except OSError as error:
        raise InvalidInput(
            "--out", "a place that can be written", str(error), "Write it elsewhere."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
