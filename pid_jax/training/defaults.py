"""Every key of a run's configuration, with its default."""

from ml_collections import ConfigDict


def default() -> ConfigDict:
    """The defaults: a small T5 trained from scratch on the synthetic dialogues."""
    config = ConfigDict()
    # "pid": encode the document once and decode every prompt against it; "pie": the usual way,
    # the prompt in front of the document and one encoder run for each prompt.
    config.method = "pid"
    # Seeds the parameters, dropout and the order of the data.
    config.seed = 0

    config.model = ConfigDict()
    # Start from these weights: a Hugging Face directory or hub id, or a training workdir.
    # "" starts from random parameters, with the sizes of model.architecture.
    config.model.init = ""
    # Start from a checkpoint of another model: parameters that it lacks, or has in another shape,
    # are initialised, what does not fit is left out, and the log names both. Without this, such
    # a checkpoint is an error. A tokenizer with more tokens than the checkpoint extends the
    # vocabulary.
    config.model.partial_init = False
    # With partial_init: keys of a config.json with other values than the checkpoint's, such as
    # ConfigDict({"num_layers": 12}) here, or --config.model.init_architecture.num_layers=12.
    config.model.init_architecture = ConfigDict()
    # Activations: "float32", "bfloat16", or "auto": bfloat16 on TPU and GPU, float32 on CPU.
    # Parameters, optimizer state, softmax, norms and loss are float32 in any case.
    config.model.dtype = "auto"
    # Training and evaluation scan over layers: the program has each kind of layer once, so that
    # deep models compile faster. Checkpoints are the same. Dropout draws other numbers.
    config.model.scan_layers = False
    # Frozen kernels and embeddings in memory and on disk: "float32" or "bfloat16", which halves
    # their memory. With activations in bfloat16, training computes the same numbers, because
    # products round kernels in any case. All other parameters stay in float32.
    config.model.frozen_dtype = "float32"
    # Used when model.init is "": keys and values of a Hugging Face config.json. The vocabulary
    # size and the special token ids come from the tokenizer.
    config.model.architecture = ConfigDict(
        {
            "model_type": "t5",
            "d_model": 128,
            "d_kv": 32,
            "d_ff": 256,
            "num_layers": 3,
            "num_decoder_layers": 3,
            "num_heads": 4,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": True,
        }
    )

    config.adapter = ConfigDict()
    # LoRA (Hu et al., arXiv 2106.09685): beside each kernel of the targets, two matrices of this
    # rank are trained, and all other parameters are frozen. 0: no adapter.
    config.adapter.rank = 0
    # The product of the two matrices is multiplied by alpha / rank.
    config.adapter.alpha = 16.0
    # In training, the rate at which features of the adapter's input are dropped.
    config.adapter.dropout = 0.0
    # A regular expression that is searched for in the paths of kernels, such as
    # decoder/layers_0/cross_attention/query/kernel. The default: queries and values of all
    # attention.
    config.adapter.targets = r"attention/(query|value)/kernel$"

    config.tokenizer = ConfigDict()
    # A directory or hub id. "": the one beside model.init, or, from scratch, a new one trained
    # on the training documents, prompts and targets.
    config.tokenizer.path = ""
    # Size of a tokenizer trained here (at most: a small corpus yields fewer tokens).
    config.tokenizer.vocab_size = 4096

    config.data = ConfigDict()
    # One of pid_jax.tasks.names().
    config.data.task = "synthetic_dst"
    # Where the task's data lies: the source (file, directory or zip), or what
    # pid_jax.data.prepare made of it. "" where the task needs none.
    config.data.path = ""
    # The task's own options, passed on by name.
    config.data.options = ConfigDict()
    config.data.train_split = "train"
    config.data.validation_split = "validation"
    # Several tasks in one run, by names of your choice, each with a weight and its own data:
    # ConfigDict({"dst": {"task": "multiwoz21", "path": "MULTIWOZ2.1.zip", "weight": 2.0}, ...}).
    # A part may also have its own options, splits, max_prompts, negative_rate, limits and
    # document_multiple. Otherwise it has those of this section. Empty: the one task above.
    config.data.mixture = ConfigDict()
    # Where token ids are: in "memory", made at every start, or on "disk", made once and read at
    # random, for data of any size. "auto": on disk for sources of 256 MiB and more.
    config.data.tokens = "auto"
    # The directory of token ids on disk, which runs may share. "": tokens/ in the working directory
    # of the run.
    config.data.cache = ""
    # Documents per step, over all devices.
    config.data.batch_size = 16
    # At most this many of a document's prompts are drawn in one step.
    config.data.max_prompts = 30
    # A subtask whose target is the task's negative target ("none" for dialogue states) takes
    # part in a step with this probability: most slots of most turns are absent.
    config.data.negative_rate = 1.0
    # Longer texts are cut to this many tokens, end tokens included, and the run says how many.
    config.data.document_tokens = 256
    config.data.prompt_tokens = 16
    config.data.target_tokens = 16
    # Which end of a document is cut: with "left", dialogues lose their first turns.
    config.data.truncation_side = "left"
    # Batches are padded to multiples of this many document tokens (a power of two): larger
    # means more padding, but fewer programs to compile.
    config.data.document_multiple = 64
    # Several prompts of a document, each with its target, share a row of the decoder. Loss and
    # gradients are the same, and most of the decoder's padding is gone. Each length of documents
    # has a few sizes of rows, each one more program to compile. "pie" has one prompt for each
    # document and never packs.
    config.data.packing = True

    config.optimizer = ConfigDict()
    # An optimizer of optax by its name: "adamw" (Loshchilov & Hutter, arXiv 1711.05101),
    # "adafactor" (Shazeer & Stern, arXiv 1804.04235: factored second moments, next to no memory;
    # T5's own optimizer), "lion", "sgd", "contrib.muon" and so on.
    config.optimizer.name = "adamw"
    # Further arguments of that function of optax, by name: ConfigDict({"momentum": 0.9}) here,
    # --config.optimizer.args.momentum=0.9 on the command line.
    config.optimizer.args = ConfigDict()
    # The peak, reached at the end of the warm-up. Adafactor with scale_by_parameter takes it
    # relative to each parameter's size: ten times AdamW's is a good start.
    config.optimizer.learning_rate = 1e-3
    # Steps of linear warm-up from zero.
    config.optimizer.warmup_steps = 100
    # After the warm-up: "constant", "linear" or "cosine" (both reach final_fraction of the peak
    # at train.steps), or "rsqrt" (the peak times sqrt(warmup_steps / step)).
    config.optimizer.schedule = "linear"
    config.optimizer.final_fraction = 0.0
    # Decoupled, times the learning rate, on matrices only (no norm scales, no biases). This holds
    # for every optimizer: the weight decay of optax's function itself is an entry of args.
    config.optimizer.weight_decay = 0.0
    # Gradients with a larger global norm are scaled down to it; 0 leaves them alone.
    config.optimizer.clip_norm = 1.0
    # AdamW's moment decays and epsilon. Other optimizers take theirs from args.
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.epsilon = 1e-8
    # Adafactor: scale each update by the root mean square of its parameter, as T5 was trained.
    config.optimizer.scale_by_parameter = True

    config.train = ConfigDict()
    # Optimizer updates in the whole run.
    config.train.steps = 1000
    # In both stacks, whatever the checkpoint's config.json says.
    config.train.dropout_rate = 0.1
    # A regular expression that is searched for in the paths of parameters, such as
    # encoder/layers_0/feed_forward/wi/kernel. Those with a match are frozen: they do not change,
    # have no optimizer state, and are saved once. "": none.
    config.train.freeze = ""
    # The decay of an exponential moving average of the trained parameters, such as 0.999.
    # Validation, the best checkpoint and the trained model have the average. 0: no average.
    config.train.ema_decay = 0.0
    # Probability mass spread evenly over the vocabulary.
    config.train.label_smoothing = 0.0
    # Weight of log(Z)^2, which holds the logits' normaliser near 1 (Mesh TensorFlow; T5 used 1e-4).
    config.train.z_loss = 0.0
    # What the backward pass computes again, in each layer: "none", "full" (everything but the
    # input of the layer), "dots_with_no_batch_dims" (all but products with parameters), "dots"
    # (all but products), or a name of jax.checkpoint_policies. Saves memory, costs time.
    config.train.remat = "none"
    # Parts of a batch whose gradients are computed one after another and summed, weighted by their
    # target tokens: the memory of a smaller batch, the loss of the whole one.
    config.train.micro_batches = 1
    # Steps in a row whose loss or gradient is not finite that are skipped: they leave parameters
    # and optimizer as they were. One more ends the run; 0: the first one does. Parameters that
    # overflow after a finite gradient always do.
    config.train.max_nonfinite_steps = 0
    # Refuse before step 1 what needs more memory than a device has. False: warn, and try it.
    config.train.check_memory = True
    # Steps between progress lines and points of the loggers; metrics.jsonl has every step.
    config.train.log_every_steps = 20
    # Where points go besides metrics.jsonl: "tensorboard", "wandb", or a class of one's own as
    # "module:Class" (pid_jax.training.loggers.Logger).
    config.train.loggers = ("tensorboard",)
    # Steps whose profile goes to WORKDIR/profile: "10:13" for steps 10, 11 and 12. "": none.
    config.train.profile_steps = ""

    config.evaluation = ConfigDict()
    # Steps between teacher-forced evaluations on validation data (and one at the end).
    config.evaluation.every_steps = 200
    # Validation documents, evenly spaced over the split; 0 takes all.
    config.evaluation.documents = 256
    # Documents per evaluation batch, over all devices; 0: as in training. eval.py decodes so many
    # at most, fewer where their tokens exceed the budget of PidModel.generate.
    config.evaluation.batch_size = 0
    # Steps between evaluations that generate an answer to every prompt of the same documents and
    # score them with the task, as eval.py does (and one at the end). 0: none.
    config.evaluation.task_score_every_steps = 0

    config.checkpoint = ConfigDict()
    # Steps between checkpoints; one is also written at every evaluation, and at the end.
    config.checkpoint.every_steps = 200
    # How many of the latest checkpoints remain, beside the best one.
    config.checkpoint.keep_last = 2
    # The validation metric that ranks checkpoints: "loss" (lowest is best),
    # "token_accuracy", "exact_match" (of targets) or "joint_exact_match" (of documents whose every
    # target is right; for dialogue states this is joint goal accuracy on tokens). A score of the
    # task as "task/NAME", such as "task/joint_goal_accuracy".
    config.checkpoint.best_metric = "joint_exact_match"
    # Evaluations in a row without a better best_metric after which the run ends. 0: never.
    config.checkpoint.patience = 0

    config.mesh = ConfigDict()
    # Devices along each axis of the mesh; -1 takes those that are left. Documents are split
    # over data and fsdp.
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1
    return config.lock()
