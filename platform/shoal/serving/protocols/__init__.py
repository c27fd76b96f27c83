"""The forms of requests and answers, one per file.

- `base`: what a protocol does
- `columns`: `/predict`, columns in and columns out
- `mlflow`: `/invocations`, as of MLflow's scoring server
- `v2`: the open inference protocol, `/v2/models/NAME/infer`
- `completions`: `/v1/completions`, as of OpenAI, of language models
"""
