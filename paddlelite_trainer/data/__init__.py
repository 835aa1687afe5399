"""From a user's loader to the batch that a step is given.

module      DataModule: what a user writes, all loaders of a project in one place.
source      BatchSource: one loader with a position, whatever its kind. What the rest of the house uses.
streams     Stream, and the kinds that can be asked for any batch: a list, a DataLoader over map-style data.
iterables   The kinds that can only be read in order: any iterable, a DataLoader over an IterableDataset.
combined    CombinedLoader, and how several loaders are read together.
order       Which samples are in batch n of epoch e, on this rank: a function of seed, epoch and position.
share       Which of these batches a rank takes, also where another number of ranks had begun the epoch.
knows_epoch Tells the epoch to what has a `set_epoch`.
fetch       Sample indices to one collated batch, in this process or in a worker.
workers     The pool of processes of one loader, over its epochs.
worker_pool Processes that fetch, forked or spawned; batches come back in order, and a failure is an error here.
worker_process    The life of one of them.
worker_transport  How tasks reach it and batches come back.
handing_over      What a spawned one is handed.
prefetch    Copies the next batch to the accelerator while the present step runs, where that pays.
batch       What is in a batch, how large it is, and its move to a device.
"""
