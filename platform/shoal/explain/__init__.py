"""Why a trained model answers as it does: attributions with Captum, checked before they are believed.

- `subject`: the model as a function of its features, and whether its kind can be explained
- `answers`: what its outputs are: classes, labels, a number, or what a custom task's model returned
- `columns`: features to the columns, pixels and tokens that people know
- `attention`: attention rollout
- `attribution`: integrated gradients, occlusion, gradient x input; batched, until they are complete
- `checks`: completeness, randomised weights, and whether the model has learnt anything
- `importance`: of columns over many rows, with intervals; permutation importance
- `faithfulness`: deletion and insertion curves beside random orders
- `rows`: the rows that are explained, and which of them one by one: chosen, worst and random ones
- `explanation`: all of it for one model
- `language`: what a language model writes, token by token
- `pictures`: bars, heatmaps, coloured tokens, curves
- `page`: one HTML page of it

Depends on a trained model and its transform; independent of Ray and MLflow. Captum is imported where it is used.
"""
