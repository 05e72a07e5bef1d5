"""The report of a run. `collect` reads the run's folder into a `ReportData`, and the other modules render it.

    data = collect_report(run_dir, recipe)                       # collect: reads every file once
    html = render_report(data, draw_figures(data))               # html, figures: the page
    tables = build_tables(data)                                  # csv_tables: CSV text by name
    card = render_card(data, facts)                              # card: README.md of the student's folder

`summary` computes the numbers of the tables and figures, and `sentences` says them. `question_views` prepares the questions
of the page, which `example_questions` picks. `calibration` measures confidence and entropy. `run_files` and
`calibration_files` read files for `collect`, and `licences` finds the sources of a student. `model_comparison` compares
models for the page of `potstill compare`. `group_files` reads runs of several seeds, and `group_scores` compares them.
`study_page` makes the page of a study: `study_files` reads its runs into `study_model`, `study_numbers` groups and compares
them, and `study_figures` draws.
"""
