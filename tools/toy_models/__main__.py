from tools.toy_models.build import main

raise SystemExit(main())
