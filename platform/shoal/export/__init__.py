"""A trained model in a form that needs no Shoal: ONNX, torch.export, weights; each with its fitted transform.

- `interface`: what an exported model takes and returns, `interface.json`
- `columns`: each raw column as an input, and the part of the graph that makes features of it
- `module`: the whole graph: raw columns in, predictions out
- `tracing`: a graph recorded by torch, for any number of rows; or why it cannot be
- `bare`: a model without its transform as ONNX, and joined with it again
- `onnx_file`, `torch_file`, `weights_file`: one format each: written, checked, loaded
- `torch_process`: the process that loads a file of torch.export
- `comparison`: an exported model beside the model itself, on the same rows
- `writer`: all formats of one model
- `folder`: the files of one format: manifest and golden rows, and what checks them

Depends on a trained model; independent of Ray and MLflow. The packages that write and run ONNX are imported where they
are used.
"""
