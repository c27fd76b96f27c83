"""LitServe around a saved model, as its README shows it: python litserve_app.py FOLDER PORT"""

import sys
from typing import Any

import litserve
import numpy as np
import torch

from shoal.inference.predictor import Predictor

MAX_BATCH_SIZE = 64


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        torch.set_num_threads(1)
        self.predictor = Predictor.load(sys.argv[1])
        self.name = self.predictor.transform.columns[0].name

    def decode_request(self, request: dict[str, Any]) -> np.ndarray:
        return np.asarray(request[self.name][0])

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, x: np.ndarray) -> list[Any]:
        answers = self.predictor.answers({self.name: x})
        return list(zip(answers["prediction"].tolist(), answers["probabilities"], strict=True))

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"prediction": [output[0]], "probabilities": [output[1]]}


if __name__ == "__main__":
    api = Api(max_batch_size=MAX_BATCH_SIZE, batch_timeout=0.002)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
