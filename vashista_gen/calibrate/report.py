"""What `calibrate` prints."""

from __future__ import annotations

from rich.console import Console

from vashista_gen.calibrate.file import Calibration, Margin


def show(console: Console, calibration: Calibration) -> None:
    """Says what was found, in a few lines."""
    about, tokens = calibration.budgets, [n for layer in calibration.layers for n in layer.budgets]
    lines = [
        f"budgets: {min(tokens)} to {max(tokens)} tokens, mean {about['average_tokens']:.0f}, for {about['share']:.0%} "
        f"of a group's softmax ({about['over']} of the queries) at {about['context']:,} tokens",
        f"         held-out documents: an oracle's lists of these lengths keep {about['held_out_share_mean']:.4f} of "
        f"the mass on average (p10 {about['held_out_share_p10']:.3f})",
    ]
    for layer in calibration.layers[:1] + calibration.layers[1:][-1:]:
        lines.append(f"         layer {layer.layer}: {', '.join(map(str, layer.budgets))}")
    balance = [b for layer in calibration.layers for row in layer.balance for b in row]
    lines.append(f"balance: scales from {min(balance):.3g} to {max(balance):.3g}")
    if calibration.margin is not None:
        one = calibration.margin
        lines.append(
            f"margin:  {one.nats:.3f} nats for {one.level:.1%}, from {one.scores:,} scores; held out: "
            f"{one.held_out_coverage:.4f} of {one.held_out_scores:,}, "
            f"worst document {min(one.held_out_by_text.values()):.4f}"
        )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def missed(margin: Margin, console: Console) -> bool:
    """Whether the misses on held-out documents are more than twice those that the level allows; says so."""
    too_many = margin.held_out_coverage < 1 - 2 * (1 - margin.level)
    if too_many:
        console.print(
            f"margin of {margin.nats:.3f} nats covers {margin.held_out_coverage:.4f} of {margin.held_out_scores:,} "
            f"held-out scores, not {margin.level}: nothing written; by document: {margin.held_out_by_text}\n"
            "    next: give more and more various documents with --text and --windows",
            style="red", highlight=False, markup=False,
        )  # fmt: skip
    return too_many
