# potstill on the public image of PyTorch, with CUDA.
#   docker build -t potstill .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -e HOME=/tmp -v "$PWD:/work" potstill run mine.yaml
FROM pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1
COPY pyproject.toml README.md LICENSE /opt/potstill/
COPY src /opt/potstill/src
COPY recipes /opt/potstill/recipes
RUN pip install '/opt/potstill[gguf,lora,math]'
WORKDIR /work
ENTRYPOINT ["potstill"]
