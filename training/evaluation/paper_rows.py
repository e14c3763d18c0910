"""The paper's numbers, in its column order. Source: arXiv 2602.15727, Tables 1 and S2.

N and r of the capacity variants are lost in our copy of the text, so they are numbered. Win rates are the row's, in
percent; the baselines have none.
"""

from __future__ import annotations

#: Column titles after the model's name.
PAPER_TITLES = (
    "Pres. ↑", "Acc. ↑", "LPIPS ↓", "CLIP dir. ↑", "vs LoRA %", "vs Edit-Transfer %", "vs VisualCloze %",
    "vs RelationAdapter %",
)  # fmt: skip
#: model → Preservation, Accuracy, LPIPS, CLIP direction, and its win rates where it has them.
PAPER_ROWS: dict[str, tuple[float, ...]] = {
    "LoRWeB, 32 × rank 4": (7.87, 5.94, 0.31, 0.21, 57.9, 70.4, 68.1, 58.5),
    "capacity variant 1": (8.13, 4.92, 0.20, 0.11, 51.8, 63.9, 62.4, 49.6),
    "capacity variant 2": (7.82, 5.49, 0.29, 0.19, 59.9, 73.1, 67.0, 56.7),
    "capacity variant 3": (7.74, 5.95, 0.31, 0.23, 60.4, 70.5, 68.5, 56.6),
    "tanh instead of softmax": (7.94, 4.49, 0.18, 0.09, 48.2, 58.3, 51.8, 42.1),
    "encoder sees the grid only": (7.90, 5.75, 0.28, 0.20, 61.9, 73.3, 68.2, 53.9),
    "SigLIP2": (7.83, 5.82, 0.31, 0.21, 59.0, 71.7, 71.5, 55.5),
    "SigLIP2 + grid only": (7.85, 5.71, 0.29, 0.20, 59.5, 73.8, 66.8, 58.3),
    "larger LoRWeB": (7.80, 5.48, 0.27, 0.19, 56.5, 67.7, 66.3, 52.6),
    "one LoRA, equal capacity": (7.99, 5.70, 0.27, 0.20),
    "one LoRA, larger": (7.88, 5.48, 0.26, 0.18),
    "VisualCloze": (5.24, 4.93, 0.53, 0.21),
    "RelationAdapter": (7.01, 5.93, 0.43, 0.22),
    "Edit-Transfer": (7.38, 4.79, 0.31, 0.04),
}


def paper_table() -> list[str]:
    """Return the rows as lines of Markdown."""
    lines = ["| model | " + " | ".join(PAPER_TITLES) + " |", "|---|" + "---:|" * len(PAPER_TITLES)]
    for model, numbers in PAPER_ROWS.items():
        cells = [f"{number:.2f}" for number in numbers[:4]] + [f"{number:.1f}" for number in numbers[4:]]
        cells += [""] * (len(PAPER_TITLES) - len(cells))
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return lines
