"""The notebooks' pictures, tables, dials, live view and chat box.

01_tokenize uses data.turn_histogram, split, findings, pages, audit and save; 02_train
training.conversations, dataset_card, probe, range_test, summary, card and share, and
explore.losses; 03_evaluate evaluation.scores, where, checkpoints, worst, comparison, scoreboard,
tasks, replies and answer, and chat.Chat; 04_compare comparison.differences, table,
same_conversations, seeds, replies, overlay, heat_map and save. They share view.sentences, table,
settings_table, doing and ProgressBar; controls.block_size and training make the dials,
dashboard.watch the live view. In any notebook, board() of the module board shows all runs on one
page, and difference() of the module difference what differs between two runs.
"""
