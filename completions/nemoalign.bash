# Completion of nemoalign for bash. Written by `make completions`; do not edit.
_nemoalign() {
    local current="${COMP_WORDS[COMP_CWORD]}" flag="${COMP_WORDS[COMP_CWORD-1]}"
    local command="" word words=""
    COMPREPLY=()
    # Bash cuts words at '='; --flag=val arrives as three of them.
    if [[ $current == "=" ]]; then current=""
    elif [[ $flag == "=" ]]; then flag="${COMP_WORDS[COMP_CWORD-2]}"; fi
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case "$word" in inspect|convert|export|reshard|sft) command="$word"; break;; esac
    done
    case "$command:$flag" in
        inspect:--tensors|inspect:-k|inspect:--key) return;;
        inspect:--diff) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return;;
        convert:-o|convert:--out|convert:--tokenizer|convert:--base) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return;;
        convert:--verify) COMPREPLY=($(compgen -W "none hash logits" -- "$current")); return;;
        convert:--dtype) COMPREPLY=($(compgen -W "keep fp32 bf16 fp16" -- "$current")); return;;
        convert:--to) COMPREPLY=($(compgen -W "auto nemo nemo2 hf" -- "$current")); return;;
        export:-o|export:--out|export:--tokenizer|export:--adapter) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return;;
        export:--verify) COMPREPLY=($(compgen -W "none hash logits" -- "$current")); return;;
        export:--dtype) COMPREPLY=($(compgen -W "keep fp32 bf16 fp16" -- "$current")); return;;
        export:--to) COMPREPLY=($(compgen -W "hf" -- "$current")); return;;
        reshard:-o|reshard:--out) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return;;
        reshard:--verify) COMPREPLY=($(compgen -W "none hash" -- "$current")); return;;
        reshard:--tp|reshard:--pp|reshard:--ep|reshard:--vp) return;;
        reshard:--format) COMPREPLY=($(compgen -W "auto dist ranks" -- "$current")); return;;
        sft:--ckpt|sft:--adapter|sft:--data|sft:--val|sft:--val-prompts|sft:--test|sft:-c|sft:--config) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return;;
        sft:--mbs|sft:--gbs|sft:--seq-len|sft:--tp|sft:--pp|sft:--vp|sft:--cp|sft:--ep|sft:--seed|sft:--lora|sft:--lora-alpha|sft:--preview|sft:--lr|sft:--weight-decay|sft:--warmup|sft:--min-lr|sft:--num-nodes|sft:--devices|sft:--epochs|sft:--max-steps|sft:--val-every|sft:--save-every|sft:--grad-clip|sft:--max-time|sft:--monitor|sft:--keep-top|sft:--early-stop|sft:--wandb) return;;
        sft:--recompute) COMPREPLY=($(compgen -W "none selective full" -- "$current")); return;;
        sft:--lora-targets) local before=""; [[ $current == *,* ]] && before="${current%,*},"; COMPREPLY=($(compgen -P "$before" -W "attention_qkv attention_dense mlp_fc1 mlp_fc2 attention mlp all" -- "${current##*,}")); return;;
        sft:--format) COMPREPLY=($(compgen -W "auto tokens messages nemo-chat sharegpt alpaca prompt-response prompt-completion" -- "$current")); return;;
        sft:--schedule) COMPREPLY=($(compgen -W "cosine linear constant WarmupAnnealing SquareRootAnnealing InverseSquareRootAnnealing PolynomialDecayAnnealing" -- "$current")); return;;
        sft:--mask) COMPREPLY=($(compgen -W "assistant completion none" -- "$current")); return;;
        sft:--precision) COMPREPLY=($(compgen -W "bf16 fp32" -- "$current")); return;;
        sft:-o|sft:--out) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$current"); return;;
        sft:-s|sft:--set) compopt -o nospace; COMPREPLY=($(compgen -S = -W "pretrained_checkpoint.restore_from_path model.micro_batch_size model.global_batch_size model.encoder_seq_length model.tensor_model_parallel_size model.pipeline_model_parallel_size model.virtual_pipeline_model_parallel_size model.context_parallel_size model.expert_model_parallel_size model.sequence_parallel model.seed model.softmax_over_padding model.hidden_dropout model.attention_dropout model.activations_checkpoint_granularity model.peft.peft_scheme model.peft.restore_from_path model.peft.save_peft model.peft.save_merged model.peft.lora_tuning.adapter_dim model.peft.lora_tuning.alpha model.peft.lora_tuning.target_modules model.peft.lora_tuning.adapter_dropout model.peft.lora_tuning.dropout_position model.peft.lora_tuning.column_init_method model.peft.lora_tuning.row_init_method model.peft.lora_tuning.layer_selection model.peft.lora_tuning.variant model.peft.lora_tuning.weight_tying model.data.chat_prompt_tokens.system_turn_start model.data.chat_prompt_tokens.turn_start model.data.chat_prompt_tokens.label_start model.data.chat_prompt_tokens.end_of_turn model.data.chat_prompt_tokens.end_of_name model.data.train_ds.file_path model.data.train_ds.prompt_template model.data.train_ds.label_key model.data.train_ds.truncation_field model.data.train_ds.truncation_method model.data.train_ds.add_bos model.data.train_ds.add_eos model.data.train_ds.add_sep model.data.train_ds.max_seq_length model.data.train_ds.packed_sequence model.data.train_ds.shuffle model.data.train_ds.index_mapping_dir model.data.validation_ds.file_path model.data.validation_ds.prompts_path model.data.validation_ds.tokens_to_generate model.data.test_ds.file_path model.data.tokenize_ahead_megabytes model.data.preview model.data.format model.optim.name model.optim.use_distributed_optimizer model.optim.overlap_grad_sync model.optim.lr model.optim.weight_decay model.optim.betas model.optim.eps model.optim.sched.name model.optim.sched.warmup_steps model.optim.sched.warmup_ratio model.optim.sched.constant_steps model.optim.sched.constant_ratio model.optim.sched.power model.optim.sched.min_lr model.optim.sched.max_steps model.sft.mask model.sft.loss_average trainer.num_nodes trainer.devices trainer.precision trainer.sft.max_epochs trainer.sft.max_steps trainer.sft.val_check_interval trainer.sft.save_interval trainer.sft.gradient_clip_val trainer.sft.max_skipped_steps trainer.max_time exp_manager.explicit_log_dir exp_manager.overwrite exp_manager.resume_if_exists exp_manager.checkpoint_callback_params.monitor exp_manager.checkpoint_callback_params.save_top_k exp_manager.checkpoint_callback_params.mode exp_manager.checkpoint_callback_params.async_save exp_manager.early_stopping.patience exp_manager.early_stopping.min_delta exp_manager.create_tensorboard_logger exp_manager.create_wandb_logger exp_manager.wandb_logger_kwargs.project exp_manager.wandb_logger_kwargs.name exp_manager.wandb_logger_kwargs.entity" -- "$current")); return;;
        sft:--preset) COMPREPLY=($(compgen -W "nemo-aligner trl" -- "$current")); return;;
    esac
    case "$command" in
        "") words="inspect convert export reshard sft --help --version";;
        inspect)
            if [[ $current == -* ]]; then words="--json -v --verbose -q --quiet --template --tensors --check --diff -k --key --help"
            else compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return; fi;;
        convert)
            if [[ $current == -* ]]; then words="--json -v --verbose -q --quiet -o --out --overwrite -n --dry-run --verify --dtype --tokenizer --to --base --help"
            else compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return; fi;;
        export)
            if [[ $current == -* ]]; then words="--json -v --verbose -q --quiet -o --out --overwrite -n --dry-run --verify --dtype --tokenizer --to --adapter --merge --adapter-only --help"
            else compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return; fi;;
        reshard)
            if [[ $current == -* ]]; then words="--json -v --verbose -q --quiet -o --out --overwrite -n --dry-run --verify --tp --pp --ep --vp --format --with-optimizer --help"
            else compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return; fi;;
        sft)
            if [[ $current == -* ]]; then words="--ckpt --mbs --gbs --seq-len --tp --pp --vp --cp --ep --sequence-parallel --no-sequence-parallel --seed --recompute --adapter --lora --lora-alpha --lora-targets --data --packing --no-packing --shuffle --no-shuffle --val --val-prompts --test --preview --format --lr --weight-decay --schedule --warmup --min-lr --mask --num-nodes --devices --precision --epochs --max-steps --val-every --save-every --grad-clip --max-time -o --out --overwrite --resume --no-resume --monitor --keep-top --early-stop --tensorboard --wandb --json -v --verbose -q --quiet -c --config -s --set -n --dry-run --preset --print-config --help"
            else words="pretrained_checkpoint.restore_from_path= model.micro_batch_size= model.global_batch_size= model.encoder_seq_length= model.tensor_model_parallel_size= model.pipeline_model_parallel_size= model.virtual_pipeline_model_parallel_size= model.context_parallel_size= model.expert_model_parallel_size= model.sequence_parallel= model.seed= model.softmax_over_padding= model.hidden_dropout= model.attention_dropout= model.activations_checkpoint_granularity= model.peft.peft_scheme= model.peft.restore_from_path= model.peft.save_peft= model.peft.save_merged= model.peft.lora_tuning.adapter_dim= model.peft.lora_tuning.alpha= model.peft.lora_tuning.target_modules= model.peft.lora_tuning.adapter_dropout= model.peft.lora_tuning.dropout_position= model.peft.lora_tuning.column_init_method= model.peft.lora_tuning.row_init_method= model.peft.lora_tuning.layer_selection= model.peft.lora_tuning.variant= model.peft.lora_tuning.weight_tying= model.data.chat_prompt_tokens.system_turn_start= model.data.chat_prompt_tokens.turn_start= model.data.chat_prompt_tokens.label_start= model.data.chat_prompt_tokens.end_of_turn= model.data.chat_prompt_tokens.end_of_name= model.data.train_ds.file_path= model.data.train_ds.prompt_template= model.data.train_ds.label_key= model.data.train_ds.truncation_field= model.data.train_ds.truncation_method= model.data.train_ds.add_bos= model.data.train_ds.add_eos= model.data.train_ds.add_sep= model.data.train_ds.max_seq_length= model.data.train_ds.packed_sequence= model.data.train_ds.shuffle= model.data.train_ds.index_mapping_dir= model.data.validation_ds.file_path= model.data.validation_ds.prompts_path= model.data.validation_ds.tokens_to_generate= model.data.test_ds.file_path= model.data.tokenize_ahead_megabytes= model.data.preview= model.data.format= model.optim.name= model.optim.use_distributed_optimizer= model.optim.overlap_grad_sync= model.optim.lr= model.optim.weight_decay= model.optim.betas= model.optim.eps= model.optim.sched.name= model.optim.sched.warmup_steps= model.optim.sched.warmup_ratio= model.optim.sched.constant_steps= model.optim.sched.constant_ratio= model.optim.sched.power= model.optim.sched.min_lr= model.optim.sched.max_steps= model.sft.mask= model.sft.loss_average= trainer.num_nodes= trainer.devices= trainer.precision= trainer.sft.max_epochs= trainer.sft.max_steps= trainer.sft.val_check_interval= trainer.sft.save_interval= trainer.sft.gradient_clip_val= trainer.sft.max_skipped_steps= trainer.max_time= exp_manager.explicit_log_dir= exp_manager.overwrite= exp_manager.resume_if_exists= exp_manager.checkpoint_callback_params.monitor= exp_manager.checkpoint_callback_params.save_top_k= exp_manager.checkpoint_callback_params.mode= exp_manager.checkpoint_callback_params.async_save= exp_manager.early_stopping.patience= exp_manager.early_stopping.min_delta= exp_manager.create_tensorboard_logger= exp_manager.create_wandb_logger= exp_manager.wandb_logger_kwargs.project= exp_manager.wandb_logger_kwargs.name= exp_manager.wandb_logger_kwargs.entity="; fi;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]]; then compopt -o nospace; fi
}
complete -F _nemoalign nemoalign
