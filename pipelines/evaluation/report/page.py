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
    notes = [*_vocabulary_notes(figures), *raters.notes(figures)]
    if not findings:
        notes.append("No judge has scored these runs and no raters' answers were given, so there are only the images.")
    return f'<ul class="findings">{items}</ul>' * bool(items) + "".join(
        f'<p class="note">{escape(note)}</p>' for note in notes
    )


def _vocabulary_notes(figures: Figures) -> list[str]:
    shares: dict[float, list[str]] = {}
    for name, run in figures["runs"].items():
        if run["vocabulary"] and run["vocabulary"]["overall"]:
            shares.setdefault(run["vocabulary"]["overall"], []).append(name)
    return [
        f"{share:.0%} of the prompts have words that {' and '.join(names)} {'was' if len(names) == 1 else 'were'} "
        "never taught; of those no picture can be right but by chance."
        for share, names in shares.items()
    ]


def taught(figures: Figures) -> str:
    """Words outside the models' vocabularies, one table for models that share one."""
    parts, told = [], []
    for found in (run["vocabulary"] for run in figures["runs"].values()):
        if found and found not in told:
            told.append(found)
            names = [other for other, of in figures["runs"].items() if of["vocabulary"] == found]
            words = ", ".join(found["words"]) + (f" and {found['more_words']} more" if found["more_words"] else "")
            parts.append(
                f"<h3>{escape(', '.join(names))}</h3><p>{escape(_sentence(found))}</p>"
                + (f'<p class="quiet">{escape(words)}</p>' if words else "")
            )
            if found["overall"] and len(found["categories"]) > 1:
                rows = [(category, f"{share:.0%}") for category, share in found["categories"].items()]
                parts.append(table(("category", "prompts with unknown words"), rows))
    return "".join(parts)


def _sentence(found: Figures) -> str:
    if not found["overall"]:
        return f"Trained on {found['words_taught']} words; all words of all prompts are among them."
    return (
        f"Trained on {found['words_taught']} words. {found['overall']:.1%} of the prompts have a word that is not "
        "among them, most often:"
    )


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
