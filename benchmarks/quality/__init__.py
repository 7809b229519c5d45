"""How good is the embedded default? Measured, stored as JSON in docs/quality/, and told in docs/quality.md.

python -m benchmarks.quality gallery             the README's pictures: fixed prompts, seed 0
python -m benchmarks.quality suite               the toybox suite: verdicts per category, and the failures
python -m benchmarks.quality super-resolution    materials recognized, consistency, sharpness
python -m benchmarks.quality guidance            a sweep of the base's guidance weight
python -m benchmarks.quality curve               score against samples seen, of every version that was committed
python -m benchmarks.quality copies              are samples copies of training scenes?
python -m benchmarks.quality detector            the judge's eyes, on true renders
python -m benchmarks.quality label               images to label by eye
python -m benchmarks.quality judge               the judge itself, against images labelled by eye
python -m benchmarks.quality teach LABELS        adds images judged by eye to what the detector learns from
python -m benchmarks.quality binding             does the text encoder say what belongs together?
python -m benchmarks.quality training            what it was trained with, and what a GPU-hour would be
python -m benchmarks.quality report              writes docs/quality.md from what is stored
"""
