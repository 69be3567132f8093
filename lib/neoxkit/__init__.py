"""neoxkit: fine-tune GPT-NeoX-style language models from JupyterLab, with DeepSpeed.

Eight folders; each imports only from those below it in this table, and from the root.

==============  ==================================================================================
cli/            the commands, and what the terminal shows
lab/            a notebook's displays and inputs: a module per notebook, dials, live view, chat
evaluation/     base model against tuned model, and runs against each other, in numbers
launch/         starting a training: its command, checks and process
training/       the work of each rank, in torch and DeepSpeed; of it launch imports arguments alone
models/         loading a model, batches, loss, replies, memory and time, sharing it
runs/           one folder per run: files, events, lock, checkpoints, card, resume checks
data/           conversation files become a tokenized dataset
root            errors, files, paths, notebook, fields, settings, machine, parallel
==============  ==================================================================================

`train.py` is the entry point of `deepspeed --module neoxkit.train`. A notebook imports from the
folders (`from neoxkit.lab import dashboard`); each folder's docstring lists what notebooks use.
"""

__version__ = "0.1.0"
