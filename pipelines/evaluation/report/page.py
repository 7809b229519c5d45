"""The report as one page of HTML: no scripts, and nothing that has to be fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pipelines.evaluation.report import judges, method, raters
from pipelines.evaluation.report.html import Section, anchor, table

STYLE = Path(__file__).with_name("style.css")

Figures = Mapping[str, Any]


def page(figures: Figures, sheets: Mapping[str, str], commands: Sequence[str]) -> str:
    """figures: of `gather`. sheets: the contact sheet of each category, as HTML. commands: that make it again."""
    sections = [
        Section("Summary", summary(figures)),
        *raters.sections(figures),
        *judges.sections(figures),
        Section("What the models were taught", taught(figures)),
        Section("Contact sheets", contact_sheets(figures, sheets), tuple(sheets)),
        Section("Runs", run_table(figures)),
        Section("Method", method.text(figures, commands)),
    ]
    sections = [section for section in sections if section.body]
    names = list(figures["runs"])
    title = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}: evaluation</title><style>{STYLE.read_text(encoding='utf-8')}</style></head>"
        f'<body><div class="frame"><header><p>Text-to-image evaluation</p><h1>{escape(title)}</h1>'
        f"<p>{escape(size(figures))}. Intervals are of 95%.</p></header>"
        f"<nav aria-label='Contents'><ol>{''.join(_entry(section) for section in sections)}</ol></nav>"
        f"<main>{''.join(_section(section) for section in sections)}</main>"
        f"<footer>cascade {escape(figures['version'])}</footer></div></body></html>\n"
    )


def size(figures: Figures) -> str:
    """200 prompts in 11 categories, 8 images each."""
    prompts, categories = len(figures["prompts"]), len(figures["categories"])
    images = sorted({run["settings"]["images_per_prompt"] for run in figures["runs"].values()})
    return (
        f"{prompts} prompt{'s' * (prompts > 1)}{f' in {categories} categories' * (categories > 1)}, "
        f"{' or '.join(map(str, images))} image{'s' * (images != [1])} each"
    )


def _entry(section: Section) -> str:
    inner = "".join(f'<li><a href="#{anchor(section.title, part)}">{escape(part)}</a></li>' for part in section.parts)
    return (
        f'<li><a href="#{anchor(section.title)}">{escape(section.title)}</a>{f"<ol>{inner}</ol>" if inner else ""}</li>'
    )


def _section(section: Section) -> str:
    return f'<section id="{anchor(section.title)}"><h2>{escape(section.title)}</h2>{section.body}</section>'


def summary(figures: Figures) -> str:
    findings = [*raters.findings(figures), *judges.findings(figures)]
    items = "".join(
        f"<li><small>{escape(about)}</small><strong>{escape(found)}</strong><small>{escape(more)}</small></li>"
        for about, found, more in findings
    )
    notes = [*_vocabulary_notes(figures), *raters.notes(figures), *judges.notes(figures)]
    if not findings:
        notes.append("No judge has scored these runs and no raters' answers were given, so there are only the images.")
    return f'<ul class="findings">{items}</ul>' * bool(items) + "".join(
        f'<p class="note">{escape(note)}</p>' for note in notes
    )


def _vocabularies(figures: Figures) -> list[tuple[list[str], Figures]]:
    """The models that share a vocabulary, and what of the prompts lies outside of it."""
    found: list[tuple[list[str], Figures]] = []
    for name, own in ((name, run["vocabulary"]) for name, run in figures["runs"].items() if run["vocabulary"]):
        same = next((names for names, other in found if other == own), None)
        if same is None:
            found.append(([name], own))
        else:
            same.append(name)
    return found


def _vocabulary_notes(figures: Figures) -> list[str]:
    notes = []
    for names, found in _vocabularies(figures):
        of = found["overall"]
        if of["strange_words"]:
            which = "All" if of["strange_prompts"] == of["prompts"] else f"{of['strange_prompts']} of the"
            were = "was" if len(names) == 1 else "were"
            notes.append(
                f"{which} {of['prompts']} prompts have words that {' and '.join(names)} {were} never taught: "
                f"{of['strange_words']} of {of['words']} different words. Pictures show what they say only by chance."
            )
    return notes


def taught(figures: Figures) -> str:
    """Words outside the models' vocabularies, one table for models that share one."""
    parts = []
    for names, found in _vocabularies(figures):
        of, words = found["overall"], found["most_frequent"]
        parts.append(f"<h3>{escape(', '.join(names))}</h3><p>Trained on captions of {found['taught']} words. ")
        if not words:
            parts.append("All words of all prompts are among them.</p>")
            continue
        shown = ", ".join(words) + (f" and {more} more" if (more := of["strange_words"] - len(words)) else "")
        parts.append(f"Of the prompts' words these are not among them:</p><p class='quiet'>{escape(shown)}</p>")
        lines = {"all": of, **(found["categories"] if len(found["categories"]) > 1 else {})}
        rows = [(name, *_outside(own, "prompts"), *_outside(own, "words")) for name, own in lines.items()]
        heads = ("category", "prompts", "with unknown words", "different words", "unknown")
        parts.append(table(heads, rows, overall=True))
    return "".join(parts)


def _outside(own: Figures, what: str) -> tuple[int, str]:
    return own[what], f"{own[f'strange_{what}']} ({own[f'strange_{what}'] / own[what]:.0%})"


def contact_sheets(figures: Figures, sheets: Mapping[str, str]) -> str:
    if not sheets:
        return ""
    marks = any(judge["measure"] == "right" for judge in figures["judges"])
    legend = " A green line under an image: the judge calls it right; a red one: wrong." if marks else ""
    return (
        '<p class="quiet">The first prompts of each category, by number, and their first images. None were chosen or '
        f"left out.{legend}</p>"
    ) + "".join(
        f'<h3 id="{anchor("Contact sheets", category)}">{escape(category)}</h3>{html}'
        for category, html in sheets.items()
    )


def run_table(figures: Figures) -> str:
    rows = []
    for name, run in figures["runs"].items():
        settings = run["settings"]
        stages = "; ".join(
            f"{stage}: {own['steps']} steps of {own['sampler']}, guidance {own['guidance_scale']:g}"
            for stage, own in settings["stages"].items()
        )
        rows.append((name, run["model"], stages, f"{settings['width']} × {settings['height']}", settings["seed"]))
    heads = ("run", "model", "stages", "pixels", "seed")
    return table(heads, rows, text=(1, 2))
