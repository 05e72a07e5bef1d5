"""The small world of the demo: its questions (`world`), and the models that are built for it (`build`)."""
