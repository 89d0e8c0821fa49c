"""Activations from disk to minibatches.  A row's way, with the file and the function at each stop:

    sources.py       `open_sources`      files, folders and data sets of others, each form by its reader
    pack.py          `pack`              they are merged into a store, if they have to be
    conversion.py    `convert`           in the dtype that is asked for, each number rounded once
    writer.py        `Writer`            written shard by shard: whatever happens, whole shards stay
    store.py         `open_store`        a file or a folder of shards, by headers alone; `Shard.read` reads rows
    activations.py   `open_activations`  the rows that count, block by block, a MiB each
    survey.py        `survey`            each row is checked once before training; rows of zeros may be dropped
    feed.py          `minibatches`       blocks are drawn at random, and their rows shuffled
    unit_rows.py     `write_unit_rows`   a float16 row of a shard becomes a unit row of a minibatch

Beside the way:

    memory.py        an array in memory as a store, for those who train in Python
    headers.py       where rows lie in .npy and .safetensors files, and which array of several is meant
    archives.py      where rows lie in .npz and .pt files
    tables.py        rows in columns of parquet and Arrow files, which pyarrow decodes
    foreign.py       files that are not read, and how to get from each to one that is
    prefetch.py      threads that prepare what comes next
    inspection.py    what is in a store: `refgba data info` and `refgba data verify`
    synthetic.py     synthetic activations on disk, `refgba synth`
    laws.py          laws of which features a synthetic row holds
    files.py         files and folders that appear whole or not at all, and JSON; every room uses it
"""
