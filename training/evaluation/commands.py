"""The bodies of `python -m training.evaluate`'s commands: options in, an evaluation folder changed, lines out.

Words of the command line are `evaluate`'s subject, the work itself is that of the modules beside this one.
"""

from __future__ import annotations

import argparse
import json
import sys

from lorweb_core.files import write_text_atomically

from ..demo.scenes import MODEL_FOLDER
from ..terminal import show
from . import sensitivity, tables
from .aggregation import evaluate
from .endpoint import EndpointJudge
from .errors import EvaluationError
from .folder import EvaluationFolder
from .generation import (
    BASELINES,
    Baseline,
    DrawnMethod,
    Method,
    common_samples,
    generate,
    known_methods,
    methods_of,
    missing_pictures,
)
from .judge import Asking, Judge, open_answers
from .local_judge import LocalJudge
from .measuring import Meter, load_meter, measure_all
from .methods import parse_method, require_distinct
from .pairwise import compare_all
from .pareto import draw_pareto
from .prompts import read_prompt
from .rating import rate_all
from .records import RecordFile
from .samples import Sample, read_losses, read_samples, write_samples
from .set_choice import SetOptions
from .sets import read_set
from .sheets import write_sheets

_SHOWN = 5


def run_generate(options: argparse.Namespace) -> None:
    """Stage 1: test analogies and every method's pictures."""
    folder = EvaluationFolder(options.out)
    if options.set is not None:
        set_options = SetOptions(
            split=options.split, tasks=tuple(options.tasks), b_per_pair=options.b_per_pair,
            pairs_per_b=options.pairs_per_b, per_task=options.per_task, caption_source=options.caption,
            seed=options.seed,
        )  # fmt: skip
        found = read_set(options.set, set_options)
        write_samples(folder, found.analogies, max_side_px=options.max_side, losses=found.losses)
        for loss in read_losses(folder):
            show(f"not in the test set: {loss}", file=sys.stderr)
    samples = read_samples(folder)
    baselines = [] if options.no_baselines else [Baseline(name, folder) for name in BASELINES]
    drawn = _generators(options, folder, samples)
    methods: list[Method] = [*baselines, *(parse_method(text) for text in options.method), *drawn]
    require_distinct([method.name for method in methods], known_methods(folder))
    for method in methods:
        generate(folder, method, samples)
    print(f"{len(samples)} samples in {len({sample.task for sample in samples})} task(s) in {folder.root}")
    _print_methods(folder, methods_of(folder), samples)


def run_judge(options: argparse.Namespace) -> None:
    """Stage 2: numbers, and ratings and comparisons if there is a judge."""
    folder = EvaluationFolder(options.folder)
    samples = read_samples(folder)
    methods = _methods(options, folder)
    references = _references(methods, options.reference)
    rating, comparison = (read_prompt(kind, options.paper_prompts) for kind in ("rating", "comparison"))
    judge = _judge(options)  # first: a wrong address should not cost the time of measuring
    measure_all(folder, _meter(options), methods, samples)
    if judge is None:
        print("measured; no judge was named (--endpoint and --model, or --local-model)")
        return
    common = common_samples(folder, methods, samples)
    answers = open_answers(options.answers or folder.root / "answers.jsonl")
    asking = Asking(judge, answers, options.workers, options.retry_invalid)
    rate_all(folder, asking, rating, methods, common)
    couples = [(reference, method) for reference in references for method in methods if method != reference]
    compare_all(folder, asking, comparison, couples, common, asks_both_orders=options.both_orders)
    _print_answers(answers)


def run_aggregate(options: argparse.Namespace) -> None:
    """Stage 3: tables, plot and picture sheets."""
    folder = EvaluationFolder(options.folder)
    samples = read_samples(folder)
    methods = _methods(options, folder)
    evaluation = evaluate(
        folder, methods, samples, reference=_references(methods, options.reference), judge=options.judge,
        wording=options.wording, resamples=options.resamples,
    )  # fmt: skip
    table = tables.as_markdown(evaluation)
    folder.results.mkdir(parents=True, exist_ok=True)
    write_text_atomically(folder.results / "table.md", table)
    write_text_atomically(folder.results / "results.json", _json(tables.as_json(evaluation)))
    show(*table.splitlines())
    plot = folder.results / "pareto.png"
    plot.unlink(missing_ok=True)  # an old one would show other numbers than the table beside it
    if not options.no_plot and not draw_pareto(evaluation, plot):
        print("no plot: neither ratings nor LPIPS with CLIP direction")
    write_sheets(folder, methods, evaluation.samples, rows=options.sheet_rows, sheets=options.sheets)
    show(f"written to {folder.results}")


def run_sensitivity(options: argparse.Namespace) -> None:
    """Pair sensitivity of every method."""
    folder = EvaluationFolder(options.folder)
    samples = read_samples(folder)
    methods = _methods(options, folder)
    found = sensitivity.measure_spreads(folder, _meter(options), methods, samples)
    table = sensitivity.as_markdown(found)
    folder.results.mkdir(parents=True, exist_ok=True)
    write_text_atomically(folder.results / "sensitivity.md", table)
    write_text_atomically(folder.results / "sensitivity.json", _json(sensitivity.as_json(found.spreads)))
    show(*table.splitlines())


def run_ablation(options: argparse.Namespace) -> None:
    """Train and measure the ablations on the demo's tiny Kontext."""
    from . import ablation

    out, folder = options.out, EvaluationFolder(options.out / "evaluation")
    untrained = ablation.prepare_demo(out, pairs_per_edit=options.pairs_per_edit)
    known = {variant.name: variant for variant in ablation.variants(untrained)}
    unknown = [name for name in options.variants if name not in known]
    if unknown:
        raise EvaluationError(
            expected=f"--variants among {', '.join(known)}", got=", ".join(unknown), remedy="Correct the names."
        )
    chosen = [known[name] for name in options.variants or known]
    files = ablation.train_variants(out, chosen, steps=options.steps, seed=options.seed)
    write_samples(folder, ablation.write_test_pictures(out / "test", per_edit=options.per_edit), max_side_px=1024)
    samples = read_samples(folder)
    drawn = [ablation.demo_method(title, file, folder, out, MODEL_FOLDER) for title, file in files.items()]
    methods: list[Method] = [Baseline("copy-b", folder), *drawn]
    for method in methods:
        generate(folder, method, samples)
    names = [method.name for method in methods]
    measure_all(folder, _meter(options), names, samples)
    table = tables.as_markdown(evaluate(folder, names, samples, reference=names[1]))
    text = ablation.as_report(table, steps=options.steps, seed=options.seed)
    write_text_atomically(options.results or out / "ablation.md", text)
    write_sheets(folder, names, samples, rows=10, sheets=1, cell_px=96)
    show(*text.splitlines())


def _generators(options: argparse.Namespace, folder: EvaluationFolder, samples: list[Sample]) -> list[DrawnMethod]:
    if not options.generator:
        return []
    from ..analogy_sampler import DrawOptions
    from ..config import BaseModelConfig
    from .our_generator import GeneratorSettings, parse_generator

    base = BaseModelConfig(
        model=options.base, components=options.components, dtype=options.dtype, quantize=options.quantize,
        gradient_checkpointing=False,
    )  # fmt: skip
    drawing = DrawOptions(
        options.steps, options.guidance, options.megapixels, options.fit, options.strength, options.noise_seed
    )
    settings = GeneratorSettings(base, drawing, options.encoder, options.max_tokens, options.device)
    return [parse_generator(text, settings, folder, samples) for text in options.generator]


def _meter(options: argparse.Namespace) -> Meter:
    encoder = options.clip_encoder or options.default_encoder
    return load_meter(
        lpips_backbone=options.lpips_backbone,
        lpips_heads=options.lpips_heads,
        clip_encoder=None if encoder == "none" else encoder,
        device=options.device,
        requires_encoder=options.clip_encoder is not None,
    )


def _judge(options: argparse.Namespace) -> Judge | None:
    if options.endpoint and options.local_model:
        raise EvaluationError(
            expected="one judge", got="both --endpoint and --local-model", remedy="Leave out one of them."
        )
    if options.local_model:
        return LocalJudge(options.local_model, device=options.device)
    if not options.endpoint:
        return None
    if not options.model:
        raise EvaluationError(
            expected="the judge's model with --endpoint",
            got="no --model",
            remedy="Name it as the server does, for example --model google/gemma-3-27b-it.",
        )
    return EndpointJudge(
        options.endpoint, options.model, timeout_seconds=options.timeout_seconds, tries_again=options.tries_again
    )


def _methods(options: argparse.Namespace, folder: EvaluationFolder) -> list[str]:
    """The methods of the command line; two of one folder are refused in evaluations made before that was checked."""
    methods = methods_of(folder, options.methods, without=options.without)
    require_distinct(methods)
    return methods


def _references(methods: list[str], wanted: list[str]) -> list[str]:
    """The named methods, else the first that is no baseline."""
    unknown = [name for name in wanted if name not in methods]
    if unknown:
        raise EvaluationError(
            expected=f"--reference to be one of {', '.join(methods)}",
            got=", ".join(unknown),
            remedy="Correct the name.",
        )
    return list(dict.fromkeys(wanted)) or [next((name for name in methods if name not in BASELINES), methods[0])]


def _print_methods(folder: EvaluationFolder, methods: list[str], samples: list[Sample]) -> None:
    for method, missing in missing_pictures(folder, methods, samples).items():
        text = f"  {method}: {len(samples) - len(missing)} pictures"
        more = f" … and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        show(text + (f", missing {', '.join(missing[:_SHOWN])}{more}" if missing else ""))


def _print_answers(answers: RecordFile) -> None:
    refused = [record["refused"] for record in answers if record.get("refused") is not None]
    unreadable = sum(record["answer"] is None for record in answers) - len(refused)
    print(f"{len(answers)} answers kept, {unreadable} of them unreadable after three tries, {len(refused)} refused")
    if refused:
        show(f"  first refusal: {refused[0]}")


def _json(values: object) -> str:
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"
