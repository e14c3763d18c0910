"""The paper's evaluation in three commands, each of which continues where it stopped.

    python -m training.evaluate generate --set mydata/pairs.jsonl --out runs/eval \\
        --generator LoRWeB=runs/mine/mine.safetensors --method RelationAdapter=relation-adapter:outputs/ra
    python -m training.evaluate judge runs/eval --endpoint http://localhost:8000/v1 --model google/gemma-3-27b-it
    python -m training.evaluate aggregate runs/eval

Test sets, judges, weights and the meaning of the numbers: docs/evaluation.md
"""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from lorweb_core.console import make_main, new_app
from lorweb_core.errors import printable
from lorweb_core.settings import CLIP_ENCODER_ID, KONTEXT_ID

from .config.schema import BaseModelConfig
from .console import open_device, silence_libraries
from .evaluation.aggregation import evaluate
from .evaluation.folder import EvaluationError, EvaluationFolder, write_file, write_json
from .evaluation.judge import Judge
from .evaluation.methods import (
    BASELINES,
    LAYOUTS,
    baseline,
    basis_method,
    common_samples,
    generate,
    images_method,
    methods_of,
    missing_images,
    require_distinct,
)
from .evaluation.metrics import load_meter, measure_all
from .evaluation.questions import all_questions, ask_all, read_prompts
from .evaluation.report import as_markdown, draw_pareto, write_sheets
from .evaluation.sets import SetOptions, read_set
from .evaluation.test_set import Sample, read_not_used, read_samples, write_samples

app = new_app("The paper's evaluation: generate, judge, aggregate. See docs/evaluation.md.")
main = make_main(app, "python -m training.evaluate", interrupted="interrupted; run the same command again to continue")
_METHOD_HELP = f"Images made elsewhere, <sample>.png or in a layout ({', '.join(LAYOUTS)}); repeatable."
_GENERATOR_HELP = "Generate with a trained basis; repeatable."


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise typer.BadParameter("must be a finite number")
    return value


Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of the evaluation.")]
Methods = Annotated[list[str] | None, typer.Option("--method", metavar="NAME", help="Only this method; repeatable.")]
Reference = Annotated[str | None, typer.Option(metavar="NAME", help="Method to compare with all others.")]
Device = Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu, cuda or cuda:N.")]


@app.callback()
def _setup() -> None:
    silence_libraries()


@app.command("generate")
def generate_command(
    out: Annotated[Path, typer.Option(help="Folder of the evaluation.")],
    test_set: Annotated[str | None, typer.Option("--set", help="Index, or evalset:FOLDER; not needed again.")] = None,
    method: Annotated[list[str] | None, typer.Option(metavar="NAME=[LAYOUT:]FOLDER", help=_METHOD_HELP)] = None,
    split: Annotated[Literal["train", "val", "test", "all"], typer.Option(help="Of an index.")] = "test",
    task: Annotated[list[str] | None, typer.Option(help="Only this task; repeatable.")] = None,
    b_per_pair: Annotated[int, typer.Option(min=1, help="Images b for every pair a, a'.")] = 2,
    per_task: Annotated[int, typer.Option(min=0, help="At most this many analogies of a task; 0 for all.")] = 0,
    caption: Annotated[Literal["a", "b", "task", "none"], typer.Option(help="Whose text is the prompt.")] = "a",
    max_side: Annotated[int, typer.Option(min=16, help="Longest side of an image in px.")] = 1024,
    seed: Annotated[int, typer.Option(help="Of the choice of analogies.")] = 0,
    generator: Annotated[list[str] | None, typer.Option(metavar="NAME=BASIS", help=_GENERATOR_HELP)] = None,
    base: Annotated[str, typer.Option(help="Diffusers folder, Hugging Face id, or single file.")] = KONTEXT_ID,
    components: Annotated[str | None, typer.Option(help="VAE and text encoders, for a single file.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Image encoder, if not the one named in the basis.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 28,
    guidance: Annotated[float, typer.Option(callback=_finite, help="Guidance embedding.")] = 2.5,
    megapixels: Annotated[float, typer.Option(min=0.001, callback=_finite, help="Of the whole grid.")] = 1.0,
    fit: Annotated[Literal["pad", "crop", "stretch"], typer.Option(help="How a and a' fit the shape of b.")] = "pad",
    strength: Annotated[float, typer.Option(callback=_finite, help="Factor on the edit.")] = 1.0,
    noise_seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    max_tokens: Annotated[int | None, typer.Option(min=1, max=512, help="T5 tokens, if not as in training.")] = None,
    dtype: Annotated[Literal["bfloat16", "float32"], typer.Option(help="Of the base.")] = "bfloat16",
    quantize: Annotated[Literal["none", "int8", "nf4"], typer.Option(help="Of the base.")] = "none",
    device: Device = "auto",
) -> None:
    """Create a test set and bring in the images of every method."""
    opened = open_device(device)
    folder = EvaluationFolder(out)
    if test_set is not None:
        found = read_set(test_set, SetOptions(split, tuple(task or ()), b_per_pair, per_task, caption, seed))
        write_samples(folder, found.analogies, max_side_px=max_side, not_used=found.not_used())
        for line in read_not_used(folder):
            print(f"not in the test set: {line}", file=sys.stderr)
    samples = read_samples(folder)
    methods = [baseline(name, folder) for name in BASELINES]
    methods += [images_method(text) for text in method or ()]
    if generator:
        from .base.sampler import SamplingOptions

        options = SamplingOptions(steps, guidance, megapixels, fit, strength, noise_seed)
        model = BaseModelConfig(model=base, components=components, dtype=dtype, quantize=quantize)
        methods += [
            basis_method(
                text, folder, samples, base=model, options=options, encoder=encoder, max_tokens=max_tokens,
                device=opened,
            )
            for text in generator
        ]  # fmt: skip
    require_distinct(folder, [made.name for made in methods])
    for made in methods:
        generate(folder, made, samples)
    print(f"{len(samples)} samples in {len({sample.task for sample in samples})} tasks in {folder.root}")
    names = methods_of(folder)
    missing = missing_images(folder, names, samples)
    for name in names:
        print(f"  {printable(name)}: {len(samples) - len(missing.get(name, []))} images")


@app.command()
def judge(
    path: Folder,
    method: Methods = None,
    reference: Reference = None,
    lpips_backbone: Annotated[Path | None, typer.Option(help="AlexNet or VGG-16 weights; needed for LPIPS.")] = None,
    lpips_heads: Annotated[Path | None, typer.Option(help="If not those of the installed package lpips.")] = None,
    clip_encoder: Annotated[str | None, typer.Option(help=f"Instead of {CLIP_ENCODER_ID}; or none.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="URL of an OpenAI-compatible judge; none: only metrics.")] = None,
    model: Annotated[str | None, typer.Option(help="Its name there; the key is read from OPENAI_API_KEY.")] = None,
    both_orders: Annotated[bool, typer.Option("--both-orders", help="Ask comparisons in both orders.")] = False,
    paper_prompts: Annotated[Path | None, typer.Option(help="Folder with rating.txt and comparison.txt.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Questions at the same time.")] = 4,
    timeout_seconds: Annotated[float, typer.Option(min=0.1, callback=_finite, help="For one reply.")] = 300.0,
    retries: Annotated[int, typer.Option(min=0, help="After rate limits and lost connections.")] = 5,
    device: Device = "auto",
) -> None:
    """Measure every image, and have it judged."""
    opened = open_device(device)
    folder, samples, methods, compared = _open(path, method, reference)
    if endpoint is not None and not model:
        raise EvaluationError("--endpoint needs --model: the judge's name there, such as google/gemma-3-27b-it.")
    # A wrong address should not cost the time of measuring.
    asked = Judge(endpoint, model, timeout_s=timeout_seconds, retries=retries) if endpoint and model else None
    meter = load_meter(
        lpips_backbone=lpips_backbone,
        lpips_heads=lpips_heads,
        clip_encoder=None if clip_encoder == "none" else clip_encoder or CLIP_ENCODER_ID,
        is_encoder_required=clip_encoder is not None,
        device=opened,
    )
    judging = None if asked is None else read_prompts(asked.model, paper_prompts)
    measure_all(folder, meter, methods, samples)
    if asked is None or judging is None:
        print("measured; for ratings and comparisons name a judge with --endpoint and --model")
        return
    judging.save(folder)
    common = common_samples(folder, methods, samples)
    questions = all_questions(folder, judging, methods, common, reference=compared, asks_both_orders=both_orders)
    counts = ask_all(folder, asked, questions, workers=workers)
    print(f"{len(questions)} questions: " + ", ".join(f"{count} {state}" for state, count in counts.items()))
    if set(counts) - {"answered"}:
        print("Run the same command again to retry; details are in answers.jsonl.")


@app.command()
def aggregate(
    path: Folder,
    method: Methods = None,
    reference: Reference = None,
    plot: Annotated[bool, typer.Option(help="Plot pareto.png, which needs matplotlib.")] = True,
    sheets: Annotated[int, typer.Option(min=0, max=99, help="How many sheets of images.")] = 4,
    sheet_rows: Annotated[int, typer.Option(min=1, help="Samples on one sheet.")] = 8,
) -> None:
    """Write the table, the plot and sheets of images."""
    folder, samples, methods, compared = _open(path, method, reference)
    found = evaluate(folder, methods, samples, reference=compared)
    table = as_markdown(found)
    write_file(folder.results / "table.md", table)
    write_json(folder.results / "results.json", asdict(found))
    print(printable(table, keep="\n"))
    pareto = folder.results / "pareto.png"
    pareto.unlink(missing_ok=True)  # an old one would show other numbers than the table
    if plot and not draw_pareto(found, pareto):
        print("no plot: there are neither ratings nor LPIPS with CLIP direction")
    write_sheets(folder, methods, common_samples(folder, methods, samples), rows=sheet_rows, sheets=sheets)


def _open(
    path: Path, wanted: list[str] | None, reference: str | None
) -> tuple[EvaluationFolder, list[Sample], list[str], str]:
    """Return the folder, its samples, the wanted methods, and the reference (else the first that is no baseline)."""
    folder = EvaluationFolder(path)
    samples, methods = read_samples(folder), methods_of(folder, wanted or ())
    if reference is not None and reference not in methods:
        raise EvaluationError(f"--reference {reference!r} is not one of the methods {', '.join(methods)}.")
    return folder, samples, methods, reference or next((m for m in methods if m not in BASELINES), methods[0])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
