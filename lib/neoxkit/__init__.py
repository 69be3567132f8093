"""neoxkit: fine-tune GPT-NeoX-style language models from JupyterLab, with DeepSpeed.

Eight folders; each imports only from those below it in this table, and from the root.

==============  ==================================================================================
cli/            the commands, and what the terminal shows
lab/            what a notebook shows and takes: a room for each notebook, dials, live view, chat
evaluation/     base beside tuned, and runs beside each other, in figures
launch/         the owner of a training: what it is started with, what is refused, its process
training/       what each rank does, in torch and DeepSpeed; only train.py runs it
models/         a model in hand: loaded, batched, its loss, its replies, its cost, shared
runs/           one folder a run: files, events, lock, checkpoints, card; may it be resumed?
data/           conversation files become a tokenized dataset
root            errors, files, paths, notebook, fields, settings, machine, parallel
==============  ==================================================================================

`train.py` is the door for `deepspeed --module neoxkit.train`. A notebook imports from the folders
(`from neoxkit.lab import dashboard`); each folder's docstring names what notebooks use of it.
"""

__version__ = "0.1.0"
