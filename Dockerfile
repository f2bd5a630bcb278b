# Serves an export or a work directory: docker run -p 8000:8000 -v $PWD/exported:/model IMAGE
FROM python:3.12-slim
WORKDIR /app
COPY requirements.txt ./
COPY mmoe_jax/serve/requirements.txt mmoe_jax/serve/requirements.txt
# Without the requirements of searches, studies and tests, which follow these.
RUN sed '/^# The search/,$d' requirements.txt > runtime.txt \
  && pip install --no-cache-dir -r runtime.txt -r mmoe_jax/serve/requirements.txt
COPY mmoe_jax mmoe_jax
RUN useradd --create-home server
USER server
EXPOSE 8000
ENTRYPOINT ["python", "-m", "mmoe_jax.serve", "--model", "/model", "--host", "0.0.0.0"]
