"""A finished training in use: the model that users load, masks for photographs and videos, exported programs.

In: a stage, a row of a sweep or an exported folder. Out: masks, ONNX, ``torch.export`` programs, a model card.
"""
