"""The models of a spec: in this process, drawn by servers, or behind an API."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mmc.spec.keys import Keys


class VllmSampler(Keys):
    """vLLM servers that draw a local model's completions. They are given each adapter when it has changed, and training, which
    stays in this process, corrects for the difference between their probabilities and its own.
    """

    type: Literal["vllm"]
    servers: list[str] = []
    """Their addresses, up to `/v1`; requests go to them in turn. Each must run with `--enable-lora` and
    `--logprobs-mode processed_logprobs`, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment."""
    start: str | None = None
    """The Python of an environment that vLLM is installed in, as in `vllm-env/bin/python`: a server of this model is started here
    with it, and stopped at the end."""
    options: list[str] = []
    """More options for `start`, as in [--max-lora-rank, "32"], which adapters of a rank above 16 need."""
    adapters: str | None = None
    """A folder that the servers see under the same path, for the adapters they are given; a temporary one when left out."""
    api_key: str | None = None
    """`${env:NAME}`, the environment variable that holds the key; without, none is sent."""
    concurrency: int = Field(64, gt=0)
    """Most requests at a time, over all servers."""
    timeout: float = Field(600.0, gt=0)
    """Seconds for one request, or for taking an adapter."""
    retries: int = Field(3, ge=0)
    """How often a request is repeated after a time-out, a lost connection or an error of a server, at the next one."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if bool(self.servers) == (self.start is not None):
            raise ValueError("a sampler has either `servers` or `start`")
        if self.options and self.start is None:
            raise ValueError("`options` does nothing without `start`")
        return self


class LocalModel(Keys):
    """A model that runs in this process on the trie engine."""

    type: Literal["local"]
    source: str | list[str]
    """Where the weights come from; the first source that is there is used. `hf:OWNER/NAME` (Hugging Face cache or hub),
    `path:DIR` (a folder transformers can load), `package:PACKAGE/FILE.gguf` (a GGUF file shipped in an installed
    Python package)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the weights. auto: float32 on a CPU, bfloat16 on a GPU."""
    batch_tokens: int | None = Field(None, gt=0)
    """Most distinct tokens kept in the cache at a time; more work waits its turn. As many as an eighth of the memory holds,
    at most 16384, when left out."""
    sampler: VllmSampler | None = None
    """Who draws completions in this process's place. Constrained ones are drawn here all the same."""


class LiteLlmModel(Keys):
    """A model behind an API, called through LiteLLM. Its modules cannot be trained, and constrained to JSON alone."""

    type: Literal["litellm"]
    model: str
    """LiteLLM's name of it, provider first: `openai/gpt-4.1-mini`."""
    api_key: str | None = None
    """`${env:NAME}`, the environment variable that holds the key. When left out, LiteLLM looks for the provider's usual one,
    such as OPENAI_API_KEY. The key itself never stands in a spec."""
    api_base: str | None = None
    """Address of the API, where it is not the provider's own; may contain `${env:NAME}`."""
    concurrency: int = Field(8, gt=0)
    """Most requests at a time."""
    timeout: float = Field(60.0, gt=0)
    """Seconds for one request."""
    retries: int = Field(3, ge=0)
    """How often a request is repeated after a time-out, a lost connection, a rate limit or an error of the server."""
    cache: bool = True
    """Whether answers at temperature 0 are kept in `.mmc/answers.sqlite`, and paid for once. Rollouts never are."""


class Price(Keys):
    """Dollars a million tokens."""

    input: float = Field(ge=0)
    """For tokens of prompts."""
    output: float = Field(ge=0)
    """For tokens of completions."""


class OpenAiModel(Keys):
    """A model behind a server that speaks OpenAI's chat API (vLLM, SGLang, llama.cpp, Ollama, OpenAI itself), called directly:
    several times the calls a second that go through LiteLLM. Its modules cannot be trained.
    """

    type: Literal["openai"]
    model: str
    """Its name on the server."""
    api_base: str = "https://api.openai.com/v1"
    """Address of the API, up to what comes before `/chat/completions`; may contain `${env:NAME}`."""
    api_key: str | None = None
    """`${env:NAME}`, the environment variable that holds the key; without, none is sent. The key never stands in a spec."""
    structured: Literal["json", "vllm"] = "json"
    """How `constrain: true` is asked for. json: JSON outputs alone, by `response_format`; vllm: choices and patterns too, by
    vLLM's `structured_outputs`."""
    price: Price | None = None
    """Without it, what calls cost is unknown."""
    concurrency: int = Field(32, gt=0)
    """Most requests at a time."""
    timeout: float = Field(60.0, gt=0)
    """Seconds for one request."""
    retries: int = Field(3, ge=0)
    """How often a request is repeated after a time-out, a lost connection, a rate limit or an error of the server."""
    cache: bool = True
    """Whether answers at temperature 0 are kept in `.mmc/answers.sqlite`, and asked for once. Rollouts never are."""


Model = Annotated[LocalModel | LiteLlmModel | OpenAiModel, Field(discriminator="type")]
RemoteModel = LiteLlmModel | OpenAiModel
"""What isinstance tells from a local model."""
