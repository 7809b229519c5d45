"""`cascade drawbench report`: what automatic judges and raters say of several runs of the same prompts.

figures.py   the runs, their vocabulary, judges' scores: one structure of plain JSON values
votes.py     the part of it that raters make: shares, net preference, ranking, agreement
charts.py    bar charts with intervals, as SVG
sheets.py    contact sheets: the first prompts of each category, thumbnails inside the page
page.py      the structure as a page of HTML that needs nothing beside itself
command.py   the command
"""
