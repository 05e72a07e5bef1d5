"""The toy task of the demo: its questions (`world`), and the training of its models (`build`)."""
