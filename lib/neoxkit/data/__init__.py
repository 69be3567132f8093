"""Turn conversation files into a tokenized dataset.

Notebooks use reading.read_sides; encoding.encode_file; selection.fit_sides and split_rows;
overlap.look_through; audit.findings, audit, require and turn_lengths;
manifests.make_manifest; questions.example.
"""
