"""The model card of an exported generator: what its run recorded, in Markdown. What it did not is said to be so."""

import html
import inspect
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datamodules.records.splits import SPLITS
from experiments.configuration.files import TARGET
from experiments.configuration.objects import check, closed_settings
from experiments.configuration.redaction import redacted
from experiments.configuration.untrusted import read_object
from experiments.evaluation.privacy import SUITE, beside_the_point
from experiments.publishing.how_to_load import PRIORS
from experiments.record.loading import Trained
from experiments.record.report import is_frechet
from experiments.record.run_directory import flat, read_status
from experiments.record.tracking import read_rows
from lightning_modules.protocols import Translates

UNKNOWN = "not recorded"
_MARKS = re.compile(r"([\\`*\[\]|])")
_LONGEST = 1_000  # characters of a value


def model_card(trained: Trained[Any], description: dict[str, Any], sample_count: int, loading: str) -> str:
    """Return the model card.

    It names no file, no path and no patient, and of the configuration only settings that cannot hold free text.

    Args:
        trained: The run and its generator.
        description: What ``generator.json`` says.
        sample_count: Images in ``samples.png``; 0 = there is none.
        loading: How the files are used, in Markdown.
    """
    translates = "source" in description
    parts = [
        *(_head_of_translator if translates else _head)(_said(description["name"]), sample_count),
        _overview(trained, description),
        "## Loading",
        loading,
        "## Training data",
        _data(trained.module.data_facts),
        "## Training",
        _training(trained),
        "## Scores",
        *_scores(trained),
        "## Privacy",
        *([_PRIVACY_OF_TRANSLATOR] if translates else _privacy(trained)),
        "## Health of the training",
        _health(trained),
        "## Intended use",
        _USE_OF_TRANSLATOR if translates else _USE,
        "## Limits",
        _LIMITS_OF_TRANSLATOR if translates else _limits(trained.directory),
        "## Licence",
        f"Of these weights: {_said(description['licence'])}. Of Mirage's code: Apache-2.0.",
    ]
    return redacted("\n\n".join(parts) + "\n")


def _head(name: str, sample_count: int) -> list[str]:
    return [
        f"# {name}: a generator of synthetic images",
        "Every image that it makes is synthetic and shows no patient. Not for diagnosis or any clinical decision.",
        f"![{sample_count} generated images](samples.png)",
        f"Images 0 to {sample_count - 1} of seed 0, not selected.",
    ]


def _head_of_translator(name: str, sample_count: int) -> list[str]:
    return [
        f"# {name}: a translator of images",
        "Every image that it makes is synthetic, and is made of an image of a patient: it is that patient's data. Not "
        "for diagnosis or any clinical decision: findings of the source may be missing in it, others may be invented.",
        "No samples are shown: they would be made of patients' images.",
    ]


_USE = (
    "Research on synthetic images: teaching, tests of software, augmentation that is validated on real images, "
    "studies of generative models. How well the images serve a purpose has to be shown for that purpose."
)
_USE_OF_TRANSLATOR = (
    "Research on image-to-image translation. How far a translation can be trusted has to be shown for the purpose, on "
    "patients whose true target is known, finding by finding."
)
_PRIVACY_OF_TRANSLATOR = (
    "Not assessed: a translation shows the patient of its source, which the privacy tests would take for a leak. "
    "Handle translations as patients' data; whether the weights tell of training patients is not known."
)
_LIMITS_OF_TRANSLATOR = "\n".join(
    (
        "- No clinical use: a translation is no evidence of any anatomy or disease. What the targets of training "
        "seldom show may be removed, what they often show may be added.",
        "- Weights can hold training images, and no score here looks for that: assess it before they leave the "
        "institution.",
        "- It knows sources like those of its data set: other scanners, protocols, populations and value ranges give "
        "images that look right and are not.",
        "- Scores compare translators on one data set; they do not say whether one image can be trusted.",
    )
)


def _overview(trained: Trained[Any], description: dict[str, Any]) -> str:
    module, image = trained.module, description["image"]
    point, stages = module.schedule.at(module.images_seen), module.schedule.stages()
    total, intensity = module.schedule.total_images, trained.intensity
    paper = " ".join((inspect.getdoc(inspect.getmodule(type(module))) or UNKNOWN).partition("\n\n")[0].split())
    state = read_status(trained.directory).get("state")
    rows = [
        ("family", paper),
        ("images", f"{image['height']} x {image['width']} pixels (height x width), {_channels(image['channels'])}"),
        ("values", _values(asdict(intensity))),
        ("bits of the training images", intensity.bits),
        *(_input_of_translator(description, module) if "source" in description else _input(description)),
        ("parameters", f"{sum(p.numel() for p in module.generator_ema.parameters()):,}"),
        ("trained with", f"{module.images_seen:,} of {total:,} planned images (state of the run: {_said(state)})"),
        ("run", description["run"]),
        ("SHA-256 of the weights", trained.weights_sha256),
    ]
    if module.classes:
        rows.insert(5, ("labels", f"{', '.join(module.classes)}; as often as among the training images unless given"))
    if len(stages) > 1:
        size = "final" if point.resolution == module.image_size else "not the final"
        stage = f"{point.stage} (of 0 to {len(stages) - 1}), faded in by {point.alpha:.0%}; {size} size"
        rows.insert(5, ("stage of growth", stage))
    return _table(("", ""), rows)


def _values(intensity: dict[str, Any]) -> str:
    return f"-1 is {intensity['low']:g}, 1 is {intensity['high']:g} {intensity['unit']} ({intensity['meaning']})"


def _input(description: dict[str, Any]) -> list[tuple[str, Any]]:
    latents = description["latents"]
    return [
        ("latents", f"{latents['length']} numbers, {PRIORS[latents['prior']][0]}"),
        ("truncation", "a factor on the latents" if latents["truncation"] else "none: latents are normalised"),
    ]


def _input_of_translator(description: dict[str, Any], module: Translates) -> list[tuple[str, Any]]:
    image, source = description["image"], description["source"]
    trained_at = f"{image['height']} x {image['width']} pixels in training, {_channels(source['channels'])}"
    noise = "drawn inside: a function of seed and place in the list" if module.generator_ema.noisy else "none"
    return [
        ("sources", f"{trained_at}; the network decides which other sizes it takes"),
        ("values of the sources", source["intensity"] and _values(source["intensity"])),
        ("trained on pairs", {True: "yes", False: "no"}.get(description["paired"])),
        ("noise", noise),
    ]


def _channels(count: int) -> str:
    return "1 channel (grey)" if count == 1 else f"{count} channels"


def _data(facts: dict[str, Any]) -> str:
    classes = facts.get("classes")
    names = ", ".join(map(str, classes)) if isinstance(classes, list) else None
    rows = [("data set", facts.get("data_set")), ("classes", "none" if names == "" else names)]
    columns = {key: facts.get(key) for key in ("images", "groups", "fingerprint")}
    if source := facts.get("source"):
        columns = {"targets": columns.pop("images"), **columns, "fingerprint of the sources": source["fingerprint"]}
    splits = [(split, *(_entry(values, split) for values in columns.values())) for split in SPLITS]
    head = ("split", *columns)
    note = (
        "A group is a patient, or a block of neighbouring slices; none lies in two splits. Training saw `train` only."
    )
    return "\n\n".join((_table(("", ""), rows), _table(head, splits), note))


def _entry(values: Any, key: str) -> Any:
    return values.get(key) if isinstance(values, dict) else None


def _training(trained: Trained[Any]) -> str:
    config, recorded = trained.config, read_object(trained.directory / "versions.json")
    trainer = config.get("trainer", {})
    rows: list[tuple[Any, Any]] = []
    for key in ("schedule", "module", "data", "callbacks.ema"):
        node = _at(config, key)
        if check(node, key, object, supplied=("schedule", "seed")):  # a stranger's, or of another version
            rows += [(key, UNKNOWN)]
        else:
            settings = flat(closed_settings(node), key).items()
            rows += [(key, node[TARGET]), *((name, "none" if value is None else value) for name, value in settings)]
    rows += [("seed", config.get("seed")), ("precision", trainer.get("precision"))]
    packages = ("mirage-gan", "git_commit", "python", "torch", "lightning", "numpy")
    rows += [(f"version of {name}" if name != "git_commit" else name, recorded.get(name)) for name in packages]
    return _table(("setting", "value"), rows)


def _at(config: dict[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def _scores(trained: Trained[Any]) -> list[str]:
    """Return the newest score that training took, and what evaluations of these weights have found."""
    clock = trained.module.images_seen
    taken = [row for row in read_rows(trained.directory / "scores.jsonl") if row["images_seen"] <= clock]
    parts = []
    if taken:
        about = taken[-1]
        made_of = ("extractor", "generated") if is_frechet(about) else ("unit",)
        keys = ("metric", "value", *made_of, "real", "split", "resolution", "generator", "images_seen")
        parts += ["Taken during training, without interval and floor; the lower, the nearer to the real images:"]
        parts += [_table(("", ""), [(key.replace("_", " "), about.get(key)) for key in keys])]
    for path in sorted(trained.directory.glob("evaluation/*/scores.json")):
        parts += _evaluation(path, trained.weights_sha256)
    return parts or [f"Scores: {UNKNOWN}."]


def _privacy(trained: Trained[Any]) -> list[str]:
    """Return the verdicts of the privacy evaluations of these weights."""
    parts = []
    for path in sorted(trained.directory.glob("evaluation/*/scores.json")):
        said = read_object(path)
        verdicts = said.get("privacy")
        of_these = said.get("suite") == SUITE and said.get("weights_sha256") == trained.weights_sha256
        if not of_these or not isinstance(verdicts, list):
            continue
        keys = ("test", "answer", "sentence", "limits")
        rows = [[one.get(key) for key in keys] for one in verdicts if isinstance(one, dict)]
        head = ("test", "answer", "what was found", "what it cannot show")
        why = beside_the_point(said)
        title = f"Evaluation {_said(path.parent.name)}, of these weights{f', but {why}' if why else ''}:"
        parts += [title, _table(head, rows)]
    note = "Clean says that a leak which the test can see was not seen; it is no proof that there is none."
    return [*parts, note] if parts else ["Not assessed: no privacy evaluation of these weights was found in the run."]


def _evaluation(path: Path, weights_sha256: str) -> list[str]:
    title, said = f"Evaluation {_said(path.parent.name)}", read_object(path)
    rows = said.get("scores")
    if not isinstance(rows, list):
        return [f"{title}: cannot be read."]
    of = said.get("weights_sha256")
    if of not in (None, weights_sha256):
        return [f"{title}: is of other weights and not shown."]
    whose = "of these weights" if of else "which does not say of which weights"
    table = [
        (row.get("name"), row.get("value"), _range(row, ""), _range(row, "floor_"), row.get("verdict"))
        for row in rows
        if isinstance(row, dict)
    ]
    head = ("score", "value", "interval", "floor (real against real, half the images)", "verdict")
    return [f"{title}, {whose}:", _how_taken(said, rows), _table(head, table)]


def _how_taken(said: dict[str, Any], rows: list[Any]) -> str:
    """Return what the scores of an evaluation share: a score never travels without it."""
    generated, real = (said[key] if isinstance(said.get(key), dict) else {} for key in ("generated", "real"))
    taken = [row["fingerprint"] for row in rows if isinstance(row, dict) and isinstance(row.get("fingerprint"), dict)]
    names = ("extractor", "weights_sha256", "preprocessing")
    extractors = {tuple(_text(of.get(name)) for name in names): None for of in taken}
    settings = [
        ("generated images", generated.get("images")),
        ("their seed", generated.get("seed")),
        *([("truncation", generated["truncation"])] if "truncation" in generated else []),
        ("real images, groups", f"{_text(real.get('images'))}, {_text(real.get('groups'))}"),
        ("split", real.get("split")),
        ("resolution", said.get("resolution")),
        ("version of mirage-gan", said.get("code_version")),
        *((f"extractor {name}", f"weights {digest}; {done}") for name, digest, done in extractors),
    ]
    return _table(("", ""), settings)


def _range(row: dict[str, Any], prefix: str) -> str | None:
    low, high = row.get(f"{prefix}low"), row.get(f"{prefix}high")
    return None if low is None or high is None else f"{_text(low)} to {_text(high)}"


def _health(trained: Trained[Any]) -> str:
    said, clock = read_object(trained.directory / "health.json"), trained.module.images_seen
    if not said:
        return f"Health: {UNKNOWN}."
    keys = ["verdict", "sentence", "advice", "score_remark", "images_seen", "since_images_seen"]
    table = _table(
        ("", ""), [(key.replace("_", " "), "none" if said.get(key) in ("", None) else said[key]) for key in keys]
    )
    if said.get("images_seen") == clock:
        return table
    return f"Measured at another time of the run than these weights, which have seen {clock:,} images.\n\n{table}"


def _limits(directory: Path) -> str:
    evaluated = any(directory.glob("evaluation/*/scores.json"))
    memory = (
        "Read the memorisation scores above before images or weights leave the institution."
        if evaluated
        else "No evaluation was found in the run: whether it does has not been assessed. Assess it before images or "
        "weights leave the institution."
    )
    return "\n".join(
        (
            "- No clinical use: the images are no evidence of any anatomy or disease, and none was read by a "
            "radiologist unless a study says so.",
            f"- A generator can repeat training images. {memory}",
            "- It shows what its data set shows, with its scanners, population and labels. What is rare there appears "
            "too seldom here, or never.",
            "- Scores compare generators on one data set with one extractor; they are no measure of clinical realism.",
        )
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *([_said(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _said(value: Any) -> str:
    """Return a value as one line of Markdown that is text and nothing else."""
    text = _text(value)
    return _MARKS.sub(r"\\\1", html.escape(text, quote=False)) if text else UNKNOWN


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = ", ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
