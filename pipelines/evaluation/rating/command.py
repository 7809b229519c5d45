"""`cascade drawbench rate`: two runs to a page that raters answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import tyro

from pipelines.evaluation.rating.answers import controls_passed, read_answers


def rate(
    run_a: tyro.conf.Positional[Path],
    run_b: tyro.conf.Positional[Path],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("answers.sqlite"),
    names: tuple[str, str] | None = None,
    seed: int = 0,
    controls: float = 0.1,
    host: str = "127.0.0.1",
    port: int = 8000,
    url: str | None = None,
    raters: int | None = None,
) -> None:
    """Ask people which of two models they prefer, as Imagen did on DrawBench.

    Serves a page. For each prompt it shows the caption and two sets of images, and asks which set is of higher quality
    and which better represents the caption. Sides and order are random for each rater, and nothing says which model is
    which. Any number may rate at once, and leave and come back. Ctrl-C ends it; the same command goes on.

    Args:
        run_a: A complete folder that `cascade batch` wrote.
        run_b: Another of the same prompts. Of both the first 8 images a prompt are shown, or as many as there are.
        output: The file the answers are added to, for `cascade drawbench report`.
        names: What the report calls the two models; the folders' names if left out. Raters never see them.
        seed: Of sides, order and control items.
        controls: Control items per prompt, at least one; 0 for none. They show a caption's images against another's.
        host: The address to listen on. Beyond this machine, raters need links of their own: see --raters.
        port: The port to listen on.
        url: How raters reach the page, if not by HOST and PORT, such as https://rate.example.org behind a proxy.
        raters: Print a personal link for each of so many raters, and let nobody else in.
    """
    from pipelines.batch.run import read_run
    from pipelines.evaluation.rating.access import Access
    from pipelines.evaluation.rating.answers import Answers
    from pipelines.evaluation.rating.server import RatingServer
    from pipelines.evaluation.rating.study import Study

    check_address(host, port, url, raters)
    default = (run_a.resolve().name, run_b.resolve().name)
    study = Study((read_run(run_a), read_run(run_b)), names or default, seed=seed, controls=controls)
    answers = Answers(output, study.about, study.prompts)
    invited = None if raters is None else [f"rater-{number}" for number in range(1, raters + 1)]
    try:
        server = RatingServer(study, answers, Access(answers.key, invited), host, port, url)
    except BaseException:
        answers.close()
        raise
    items = f"{study.control_count} control item{'s' * (study.control_count != 1)}"
    print(
        f"{study.names[0]} against {study.names[1]}: {len(study.prompts)} prompts and {items} a rater, {study.images} "
        f"images a side; answers go into {output}"
    )
    print("\n".join([server.url] if invited is None else [f"{name}  {server.link(name)}" for name in invited]))
    print("Ctrl-C ends; the same command goes on.", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print(f"\n{summary(output)}")
    finally:
        server.server_close()
        answers.close()


def check_address(host: str, port: int, url: str | None, raters: int | None) -> None:
    """Raises ValueError where raters could not reach the page, or anyone could."""
    from pipelines.evaluation.rating.server import is_loopback

    if not 0 <= port <= 65535:
        raise ValueError(f"--port is {port}; expected 0 to 65535")
    if raters is not None and not 1 <= raters <= 10_000:
        raise ValueError(f"--raters is {raters}; expected 1 to 10000")
    if url is not None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
            raise ValueError(f"--url is {url!r}; expected http:// or https:// and a host, and no path")
    elif host in ("0.0.0.0", "::", ""):
        raise ValueError(
            f"--host {host or '(empty)'} is no address to put into a link; say --url http://THIS-MACHINE:{port}"
        )
    reached_by = urlsplit(url).hostname or "" if url else host
    if raters is None and not (is_loopback(host) and is_loopback(reached_by)):
        raise ValueError(
            "this page can be reached from other machines; say --raters N, so that each of N raters gets a link of "
            "their own and nobody else comes in"
        )


def summary(path: Path) -> str:
    """Who answered how much."""
    answers = read_answers(path)
    lines = [f"{path}: {sum(not answer.control for answer in answers)} answers"]
    for rater, (passed, of) in controls_passed(answers).items():
        given = sum(answer.rater == rater and not answer.control for answer in answers)
        lines.append(f"  {rater}: {given} answers, {passed} of {of} control items passed")
    return "\n".join(lines)
