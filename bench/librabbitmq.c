/* The RabbitMQ C client at the same work, as a yardstick: it reads lines "publish N", "consume N" and "sync" (wait until
 * the broker has done what came before) from its standard input, does that, and answers with a line. Arguments: port,
 * exchange, routing key, queue, body. */

#include <amqp.h>
#include <amqp_tcp_socket.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(amqp_rpc_reply_t reply, const char *what) {
    if (reply.reply_type != AMQP_RESPONSE_NORMAL) {
        fprintf(stderr, "%s failed\n", what);
        exit(1);
    }
}

static void publish(amqp_connection_state_t connection, char **argv, long count) {
    amqp_basic_properties_t properties = {0};
    properties._flags = AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_CONTENT_ENCODING_FLAG | AMQP_BASIC_DELIVERY_MODE_FLAG |
                        AMQP_BASIC_PRIORITY_FLAG;
    properties.content_type = amqp_cstring_bytes("application/json");
    properties.content_encoding = amqp_cstring_bytes("utf-8");
    properties.delivery_mode = 1;
    for (long i = 0; i < count; i++)
        if (amqp_basic_publish(connection, 1, amqp_cstring_bytes(argv[2]), amqp_cstring_bytes(argv[3]), 0, 0, &properties,
                               amqp_cstring_bytes(argv[5])))
            exit(1);
}

static void consume(amqp_connection_state_t connection, char **argv, long count) {
    amqp_basic_qos(connection, 1, 0, 1000, 0);
    amqp_basic_consume(connection, 1, amqp_cstring_bytes(argv[4]), amqp_cstring_bytes("bench"), 0, 0, 0, amqp_empty_table);
    check(amqp_get_rpc_reply(connection), "consume");
    for (long i = 0; i < count; i++) {
        amqp_envelope_t envelope;
        amqp_maybe_release_buffers(connection);
        check(amqp_consume_message(connection, &envelope, NULL, 0), "message");
        amqp_basic_ack(connection, 1, envelope.delivery_tag, 0);
        amqp_destroy_envelope(&envelope);
    }
    amqp_basic_cancel(connection, 1, amqp_cstring_bytes("bench"));
}

int main(int argc, char **argv) {
    char line[64];
    if (argc != 6)
        return 2;
    amqp_connection_state_t connection = amqp_new_connection();
    amqp_socket_t *socket = amqp_tcp_socket_new(connection);
    if (!socket || amqp_socket_open(socket, "127.0.0.1", atoi(argv[1])))
        return 1;
    check(amqp_login(connection, "/", 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, "guest", "guest"), "login");
    amqp_channel_open(connection, 1);
    check(amqp_get_rpc_reply(connection), "channel");
    while (fgets(line, sizeof line, stdin)) {
        if (!strncmp(line, "publish ", 8))
            publish(connection, argv, atol(line + 8));
        else if (!strncmp(line, "sync", 4)) {
            amqp_queue_declare(connection, 1, amqp_cstring_bytes(argv[4]), 1, 0, 0, 0, amqp_empty_table);
            check(amqp_get_rpc_reply(connection), "declare");
        } else
            consume(connection, argv, atol(line + 8));
        puts("done");
        fflush(stdout);
    }
    amqp_connection_close(connection, AMQP_REPLY_SUCCESS);
    return 0;
}
