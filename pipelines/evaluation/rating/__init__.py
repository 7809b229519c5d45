"""Human preference between two runs, as Imagen measured it on DrawBench: a local page, and the answers in SQLite."""
