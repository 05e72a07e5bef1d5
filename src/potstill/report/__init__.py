"""The report of a run: `collect` reads a run directory into a `ReportData`, the other modules render it.

    data = collect_report(run_dir, recipe)                       # collect: every file is read once
    html = render_report(data, draw_figures(data))               # html, figures: the page
    tables = build_tables(data)                                  # csv_tables: name -> CSV text
    card = render_card(data, facts)                              # card: README.md of the student's folder

`summary` computes what tables and figures show, `run_files` helps `collect`, `licences` finds the sources of a student.
"""
