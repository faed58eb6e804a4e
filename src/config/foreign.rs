//! Flags of Hugging Face's trainer, DeepKE and LLaMA-Factory that are no settings here: accepted with one
//! line that says why they have no effect, or refused when ignoring them would change the result.

use crate::error::{Error, Result};

/// A flag of another tool.
#[derive(Debug)]
pub struct Foreign {
    /// With underscores; a trailing `*` stands for any ending.
    pub name: &'static str,
    /// Whether a value follows the flag; without one, only `True` or `False` may.
    pub takes_value: bool,
    /// Values that change nothing here. Empty: any.
    pub harmless: &'static [&'static str],
    /// Why it has no effect, or why its other values are refused.
    pub reason: &'static str,
}

const fn switch(name: &'static str, reason: &'static str) -> Foreign {
    Foreign { name, takes_value: false, harmless: &[], reason }
}

const fn valued(name: &'static str, reason: &'static str) -> Foreign {
    Foreign { name, takes_value: true, harmless: &[], reason }
}

/// A switch whose `True` would change the result.
const fn only_off(name: &'static str, reason: &'static str) -> Foreign {
    Foreign { name, takes_value: false, harmless: &["false"], reason }
}

/// A flag of which only some values can be honoured.
const fn only(name: &'static str, harmless: &'static [&'static str], reason: &'static str) -> Foreign {
    Foreign { name, takes_value: true, harmless, reason }
}

const NOTHING: &[&str] = &["none", "null", "", "0", "0.0", "false", "[]"];
const ONE_PROCESS: &str = "one process trains on one device";
const METRICS: &str = "every step is in metrics.jsonl and report.html";
const PREDICTS: &str = "training makes no predictions; `qwentune generate` writes the answers";
const GENERATES: &str = "training generates no text; `qwentune generate` does";
const READS_TEXT: &str = "this trains on text";
const ADAMW: &str = "the optimizer is AdamW in f32";
const PREFERENCE: &str =
    "it belongs to preference training (DPO, KTO, PPO); supervised fine-tuning is what this trains";
const NO_QUANT: &str = "the base weights are used as they are, not quantised";

/// Every such flag.
#[rustfmt::skip]
pub static FOREIGN: &[Foreign] = &[
    Foreign { name: "do_train", takes_value: false, harmless: &["true"], reason: "`train` trains; `evaluate` computes the loss of a file" },
    switch("do_eval", "--eval-strategy and --eval-on-start say when to evaluate"),
    switch("do_predict", PREDICTS),
    switch("predict_with_generate", PREDICTS),
    only("stage", &["sft"], "supervised fine-tuning is what this trains"),
    only("finetuning_type", &["lora"], "LoRA is what this trains"),
    only_off("full_finetune", "LoRA is what this trains"),
    valued("model_name", "the model family is read from the model folder"),
    valued("model_file", "the model family is read from the model folder"),
    valued("model_type", "the model family is read from the model folder"),
    valued("tokenizer_name*", "the tokenizer is read from the model folder"),
    valued("config_name", "the configuration is read from the model folder"),
    valued("model_revision", "nothing is downloaded"),
    valued("use_auth_token", "nothing is downloaded"),
    valued("hf_hub_token", "nothing is downloaded"),
    switch("trust_remote_code", "no code from a model folder is ever run"),
    switch("use_fast_tokenizer", "there is one tokenizer"),
    only_off("split_special_tokens", "special tokens of the template are always single tokens"),
    only("bits", &["16", "32"], NO_QUANT),
    only("quantization_bit", &["16", "32", "none", "null"], NO_QUANT),
    only_off("load_in_4bit", NO_QUANT),
    only_off("load_in_8bit", NO_QUANT),
    switch("double_quant", NO_QUANT),
    valued("quant_type", NO_QUANT),
    only_off("adam8bit", "the optimizer's moments are f32"),
    only("optim", &["adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw", "paged_adamw_32bit"], "the optimizer is AdamW in f32"),
    only("optim_args", NOTHING, "AdamW's parameters are --adam-beta1, --adam-beta2, --adam-epsilon, --weight-decay"),
    switch("bf16", "--dtype decides it: CUDA computes in bf16 with f32 accumulation, the CPU in f32 unless told --dtype bf16"),
    switch("pure_bf16", "adapter weights and moments are f32"),
    only_off("fp16", "there is no f16 arithmetic here: --dtype is f32 or bf16; leave --fp16 out"),
    valued("fp16_opt_level", "there is no f16 arithmetic here"),
    valued("fp16_backend", "there is no f16 arithmetic here"),
    valued("half_precision_backend", "the device decides the arithmetic"),
    valued("loss_scale", "nothing overflows that scaling would save"),
    switch("tf32", "matrix products are not rounded to TF32"),
    switch("bf16_full_eval", "evaluation computes as training does"),
    only_off("fp16_full_eval", "evaluation computes as training does"),
    switch("gradient_checkpointing", "--recompute decides it, by itself unless told; the numbers are the same either way"),
    switch("use_gradient_checkpointing", "--recompute decides it; the numbers are the same either way"),
    switch("disable_gradient_checkpointing", "--recompute decides it; the numbers are the same either way"),
    valued("gradient_checkpointing_kwargs", "--recompute decides it; the numbers are the same either way"),
    valued("flash_attn", "there is one attention"),
    valued("attn_implementation", "there is one attention"),
    switch("upcast_layernorm", "norms are computed in f32 always"),
    switch("upcast_lmhead_output", "the loss is computed in f32 always"),
    only("neft_alpha", NOTHING, "noise on embeddings is not supported"),
    only("neftune_noise_alpha", NOTHING, "noise on embeddings is not supported"),
    only("label_smoothing_factor", NOTHING, "label smoothing is not supported"),
    valued("length_column_name", "lengths are counted"),
    only_off("sortish_sampler", "rows are shuffled; order does not follow length"),
    only_off("auto_find_batch_size", "`plan` shows what fits; the batch size is what was told"),
    only_off("group_by_length", "rows are shuffled; order does not follow length"),
    only("data_seed", NOTHING, "--seed decides the order too"),
    only("use_dora", NOTHING, "DoRA is not supported; leave it out to train LoRA"),
    only("pissa_init", NOTHING, "PiSSA changes the base weights; leave it out to train LoRA"),
    only("init_lora_weights", &["true"], "A is drawn as in PyTorch, B is zero; the others begin with PEFT: convert the adapter there, then --init-adapter"),
    only("peft_type", &["lora"], "LoRA is what this trains"),
    only("bias", &["none"], "biases are not trained"),
    only("fan_in_fan_out", NOTHING, "the linear layers of Qwen are stored [out, in]"),
    only("target_parameters", NOTHING, "only linear layers are adapted: --lora-target-modules"),
    only("trainable_token_indices", NOTHING, "embeddings are not trained"),
    only("layer_replication", NOTHING, "every block is there once"),
    only("layers_pattern", &["layers", "h", "none", "null", ""], "--layers-to-transform counts the model's own blocks"),
    only("lora_bias", &["none", "false"], "biases are not trained"),
    only("modules_to_save", NOTHING, "only LoRA matrices are trained"),
    only("additional_target", NOTHING, "only LoRA matrices are trained"),
    only("num_layer_trainable", &["3"], "LoRA adapts every layer"),
    valued("name_module_trainable", "--lora-target-modules names the adapted layers"),
    only("resume_lora_training", &["true"], "--init-adapter goes on training the adapter it reads; --fold-adapters begins a new one on top of others"),
    only("train_on_prompt", &["false"], "say --train-on all"),
    only("train_on_inputs", &["false"], "say --train-on all"),
    only("prompt_template_name", &["qwen"], "say --template, as the folder's own template is the default"),
    only("mask_history", &["false"], "say --train-on last-turn"),
    switch("ignore_pad_token_for_loss", "padding is never scored"),
    switch("pad_to_max_length", "padding never changes the numbers"),
    only("predict_file", NOTHING, PREDICTS),
    only("num_beams", &["1"], "answers are not searched for with beams"),
    only("max_train_samples", NOTHING, "say --max-samples N: the first N rows of each file"),
    only("max_eval_samples", NOTHING, "say --max-samples N: the first N rows of each file"),
    valued("language", "rows say themselves what they are"),
    valued("id_text", "rows say themselves what they are"),
    valued("preprocessing_num_workers", "rows are tokenised once, by --threads threads, and kept in --cache-dir"),
    valued("preprocessing_batch_size", "rows are tokenised once and kept in --cache-dir"),
    valued("dataloader_num_workers", "batches are made in the training process"),
    switch("dataloader_pin_memory", "batches are made in the training process"),
    valued("dataloader_prefetch_factor", "batches are made in the training process"),
    switch("dataloader_persistent_workers", "batches are made in the training process"),
    only_off("dataloader_drop_last", "the last, partial window of an epoch is a step"),
    switch("overwrite_cache", "cached tokens are found by content, never stale"),
    switch("remove_unused_columns", "unused columns do no harm"),
    valued("deepspeed", ONE_PROCESS),
    valued("fsdp*", ONE_PROCESS),
    valued("ddp_*", ONE_PROCESS),
    valued("local_rank", ONE_PROCESS),
    valued("accelerator_config", ONE_PROCESS),
    valued("max_memory_mb", "memory is planned before the first step; see `plan`"),
    valued("run_name", METRICS),
    valued("logging_dir", METRICS),
    valued("logging_strategy", METRICS),
    switch("logging_first_step", METRICS),
    switch("plot_loss", METRICS),
    valued("log_level*", "warnings and errors are always shown"),
    switch("disable_tqdm", "a bar is drawn on a terminal only; --quiet turns it off"),
    switch("include_num_input_tokens_seen", METRICS),
    switch("skip_memory_metrics", "`plan` shows memory"),
    switch("save_safetensors", "adapters are always safetensors"),
    switch("save_only_model", "checkpoints always hold the complete state"),
    switch("full_determinism", "training is always deterministic"),
    switch("use_cpu", "say --device cpu"),
    switch("no_cuda", "say --device cpu"),
    switch("torch_compile", "there is nothing to compile"),
    only("metric_for_best_model", &["loss", "eval_loss"], "the best evaluation is the one of lowest loss"),
    only_off("greater_is_better", "the best evaluation is the one of lowest loss"),
    only_off("push_to_hub", "nothing is uploaded"),
    valued("hub_*", "nothing is uploaded"),
    only("eval_delay", &["0", "0.0"], "evaluations begin with the first that is due"),
    switch("prediction_loss_only", "evaluation computes the loss only"),
    switch("include_inputs_for_metrics", "evaluation computes the loss only"),
    switch("save_on_each_node", ONE_PROCESS),
    switch("log_on_each_node", ONE_PROCESS),
    switch("logging_nan_inf_filter", "a loss that is not finite stops the run"),
    valued("eval_accumulation_steps", "evaluation keeps no logits"),
    only_off("create_new_adapter", "name the adapters to fold: --fold-adapters"),
    only_off("streaming", "rows are shuffled as a whole; files may be larger than memory all the same"),
    valued("buffer_size", "files are read in pieces of their own"),
    only("mix_strategy", &["concat"], "files are trained on one after the other, shuffled together"),
    only("interleave_probs", NOTHING, "files are trained on one after the other, shuffled together"),
    only_off("eval_on_each_dataset", "one file is evaluated"),
    only("tokenized_path", NOTHING, "rows are tokenised here and kept in --cache-dir; tokenised rows are read as JSON Lines"),
    switch("data_shared_file_system", ONE_PROCESS),
    valued("media_dir", READS_TEXT),
    valued("image_*", READS_TEXT),
    valued("video_*", READS_TEXT),
    valued("audio_*", READS_TEXT),
    switch("use_audio_in_video", READS_TEXT),
    switch("crop_to_patches", READS_TEXT),
    switch("freeze_vision_tower", READS_TEXT),
    switch("freeze_multi_modal_projector", READS_TEXT),
    only_off("freeze_language_model", READS_TEXT),
    valued("freeze_trainable_*", "LoRA is what this trains"),
    valued("freeze_extra_modules", "LoRA is what this trains"),
    only("tool_format", NOTHING, "tools are written as the template writes them"),
    only_off("preserve_thinking", "thoughts of earlier turns are the template's affair"),
    only_off("resize_vocab", "the vocabulary is the model's"),
    only("add_tokens", NOTHING, "the vocabulary is the model's"),
    only("add_special_tokens", NOTHING, "the vocabulary is the model's"),
    only("new_special_tokens_config", NOTHING, "the vocabulary is the model's"),
    valued("init_special_tokens", "the vocabulary is the model's"),
    only("rope_scaling", NOTHING, "positions are computed as the model folder's config.json says"),
    only_off("shift_attn", "attention is computed whole"),
    only("mixture_of_depths", NOTHING, "every layer computes every token"),
    switch("low_cpu_mem_usage", "weights are mapped, never copied whole"),
    switch("use_unsloth*", "there is one way to compute"),
    switch("enable_liger_kernel", "there is one way to compute"),
    switch("use_liger_kernel", "there is one way to compute"),
    switch("use_v1_kernels", "there is one way to compute"),
    switch("use_kv_cache", GENERATES),
    switch("use_reentrant_gc", "--recompute decides it; the numbers are the same either way"),
    valued("moe_aux_loss_coef", "dense models have no experts to balance"),
    only_off("train_from_scratch", "training begins with the model's weights"),
    valued("infer_*", GENERATES),
    valued("offload_folder", "memory is planned before the first step; see `plan`"),
    valued("device_map", "one process trains on one device: --device"),
    valued("ms_hub_token", "nothing is downloaded"),
    valued("om_hub_token", "nothing is downloaded"),
    switch("print_param_status", "`plan` shows what is trained"),
    valued("quantization_method", NO_QUANT),
    valued("quantization_type", NO_QUANT),
    switch("double_quantization", NO_QUANT),
    valued("quantization_device_map", NO_QUANT),
    only_off("fp8", "the device decides the arithmetic"),
    valued("fp8_*", "the device decides the arithmetic"),
    valued("export_*", "`merge` and `export` write models and adapters"),
    valued("vllm_*", GENERATES),
    valued("sglang_*", GENERATES),
    valued("skip_special_tokens", GENERATES),
    valued("eval_num_beams", PREDICTS),
    only_off("use_kt", ONE_PROCESS),
    valued("kt_*", ONE_PROCESS),
    only_off("use_mca", ONE_PROCESS),
    only_off("use_hyper_parallel", ONE_PROCESS),
    valued("hyper_parallel_args", ONE_PROCESS),
    valued("ray_*", ONE_PROCESS),
    valued("master_*", ONE_PROCESS),
    switch("enable_torch_profiler", "`bench` shows where time goes"),
    valued("profiler_*", "`bench` shows where time goes"),
    valued("profile_modules", "`bench` shows where time goes"),
    only_off("use_galore", ADAMW),
    valued("galore_*", ADAMW),
    only_off("use_apollo", ADAMW),
    valued("apollo_*", ADAMW),
    only_off("use_badam", ADAMW),
    valued("badam_*", ADAMW),
    only_off("use_adam_mini", ADAMW),
    only_off("use_muon", ADAMW),
    only_off("use_llama_pro", "LoRA is what this trains"),
    only_off("use_dft_loss", "the loss is the cross-entropy of the scored tokens"),
    only_off("use_asft_loss", "the loss is the cross-entropy of the scored tokens"),
    valued("asft_alpha", "the loss is the cross-entropy of the scored tokens"),
    only_off("use_eaft_loss", "the loss is the cross-entropy of the scored tokens"),
    valued("eaft_alpha", "the loss is the cross-entropy of the scored tokens"),
    valued("loraplus_lr_embedding", "embeddings are not trained"),
    valued("pissa_iter", "PiSSA is not supported"),
    only_off("pissa_convert", "PiSSA is not supported"),
    only("module_dropout", NOTHING, "--lora-dropout drops adapter inputs"),
    valued("oft_*", "LoRA is what this trains"),
    switch("compute_accuracy", "evaluation computes the loss only"),
    switch("use_swanlab", METRICS),
    valued("swanlab_*", METRICS),
    switch("include_effective_tokens_per_second", METRICS),
    only("pref_*", NOTHING, PREFERENCE),
    only("dpo_*", NOTHING, PREFERENCE),
    only("kto_*", NOTHING, PREFERENCE),
    only("simpo_*", NOTHING, PREFERENCE),
    only("ppo_*", NOTHING, PREFERENCE),
    only("ref_model*", NOTHING, PREFERENCE),
    only("reward_model*", NOTHING, PREFERENCE),
    only("ld_alpha", NOTHING, PREFERENCE),
    only("beta", NOTHING, PREFERENCE),
    only("loss_type", &["nll", "none", "null"], PREFERENCE),
    only("rlhf_type", NOTHING, PREFERENCE),
    only("desirable_weight", NOTHING, PREFERENCE),
    only("undesirable_weight", NOTHING, PREFERENCE),
    only_off("reference_free", PREFERENCE),
    only_off("precompute_ref_log_probs", PREFERENCE),
    only("max_prompt_length", NOTHING, PREFERENCE),
    only("max_completion_length", NOTHING, PREFERENCE),
    switch("ignore_data_skip", "nothing is skipped on resume: the place in the data is computed"),
];

/// How text is generated: flags that training scripts read too and that change nothing about training. Other
/// commands have some of them as their own.
#[rustfmt::skip]
static GENERATION: &[Foreign] = &[
    only("enable_thinking", &["true", "none", "null"], "rows say themselves what is thought"),
    valued("max_new_tokens", GENERATES),
    valued("min_new_tokens", GENERATES),
    switch("do_sample", GENERATES),
    valued("num_beams", GENERATES),
    valued("num_beam_groups", GENERATES),
    valued("temperature", GENERATES),
    valued("top_k", GENERATES),
    valued("top_p", GENERATES),
    valued("typical_p", GENERATES),
    valued("penalty_alpha", GENERATES),
    valued("diversity_penalty", GENERATES),
    valued("repetition_penalty", GENERATES),
    valued("length_penalty", GENERATES),
    valued("no_repeat_ngram_size", GENERATES),
    switch("use_cache", GENERATES),
    valued("generation_*", GENERATES),
];

/// The foreign flag called `name`; dashes and underscores are the same.
#[must_use]
pub fn find(name: &str) -> Option<&'static Foreign> {
    find_in(FOREIGN, name)
}

/// [`find`] for a command that trains: how text is generated means nothing there.
#[must_use]
pub fn find_for_training(name: &str) -> Option<&'static Foreign> {
    find_in(GENERATION, name).or_else(|| find_in(FOREIGN, name))
}

fn find_in(table: &'static [Foreign], name: &str) -> Option<&'static Foreign> {
    let name = name.replace('-', "_").to_ascii_lowercase();
    table.iter().find(|foreign| match foreign.name.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == foreign.name,
    })
}

impl Foreign {
    /// The warning for a use of this flag that changes nothing, `value` being what was given (a switch
    /// alone is `true`).
    ///
    /// # Errors
    /// Usage: the value would change the result and cannot be honoured.
    pub fn accept(&self, name: &str, value: &str) -> Result<String> {
        let name = name.replace('_', "-");
        let value = value.trim();
        if self.harmless.is_empty() || self.harmless.iter().any(|h| h.eq_ignore_ascii_case(value)) {
            return Ok(format!("--{name} has no effect: {}", self.reason));
        }
        Err(Error::usage(format!("--{name} {value} cannot be honoured: {}", self.reason)))
    }
}
