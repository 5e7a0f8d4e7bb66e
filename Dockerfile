# Train in a container: docker build -t dkel . && docker run --rm -v "$PWD/outputs:/runs/outputs" dkel experiment=quickstart
# PyTorch for CUDA comes from the package index as it is; add --gpus all to docker run where there is one.
FROM python:3.11-slim

WORKDIR /source
COPY . .
RUN pip install --no-cache-dir --constraint constraints.txt .

WORKDIR /runs
ENTRYPOINT ["dkel"]
