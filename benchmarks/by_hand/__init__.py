"""Training steps as an expert writes them in plain PyTorch, for the models of ``autopar.models``.

One file for each way to train: ``single``, ``ddp``, ``fsdp2``, ``tensor_parallel``. Each has a ``build`` that takes
a plain model on its device and a ``Recipe``, and returns a ``Trainer``. What they share is in ``language_model``
(the model in pieces that are compiled one by one) and ``trainer`` (the loop). No autopar in them but the models.
"""
