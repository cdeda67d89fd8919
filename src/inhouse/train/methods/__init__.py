"""What is trained: one file per method, each with its settings, `BASE` and `attach(model, params) -> model`.

`attach` gets the base with all gradients off and returns the model to train; only what is trained requires gradients.
`BASE` says what becomes of the base's weights, and so how they are loaded:
`frozen`  in the type to compute in; the full-precision values are given back before anything is merged or saved;
`trained` in fp32, since small steps vanish in bf16; the merged folder has the type that `save_dtype` names;
`rounded` in the type to compute in and then rounded by `attach`, with no second copy kept.
"""
