"""The notebooks' pictures, tables, dials, live view and chat box.

01_tokenize uses data.turn_histogram, findings, pages and audit; 02_train training.learning_rates,
short_runs and summary; 03_evaluate evaluation.scores, where, checkpoints, worst, comparison,
scoreboard, tasks, replies and answer, and chat.Chat; 04_compare comparison.differences, table,
same_conversations, seeds, overlay, heat_map and save. They share view.sentences, table,
settings_table and ProgressBar; controls.block_size and training make the dials, dashboard.watch
the live view.
"""
