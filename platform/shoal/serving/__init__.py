"""A trained model behind HTTP, without Ray.

- `config`: the `serve` section
- `signature`: what a model takes and returns, for validation, OpenAPI and the page
- `rows`: values of a request to columns, checked against the signature; `errors`: a refusal with its status
- `protocols`: the forms of requests and answers, one per file
- `engine`: a model that answers batches, in a thread of its own; `batcher`: requests to batches
- `models`: the models of a server, their versions, and which of them answers
- `loading`: a model into this process, and its name in routes
- `takeover`: an alias that moves is followed
- `answer`: a request becomes an answer
- `app`: the routes; `guard`: who may call them; `body`: what is read of a request; `metrics`: for Prometheus
- `documents`: OpenAPI and the pages `/` and `/docs`
- `server`: uvicorn around the app; `shedding`: when it has too many requests; `shedding_protocol`: how it refuses them

Depends on `inference` and `registry`; needs FastAPI and uvicorn. Independent of Ray, which `cluster.serving` adds.
"""
