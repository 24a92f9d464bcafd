"""The file of class names that the TensorFlow Object Detection API keeps beside its shards, *.pbtxt."""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from tfdet.errors import DataError


def read_label_map(file):
    """{label as in the shards: name}, in the order of the file; the name is `display_name` where that is given.

    Raises:
        DataError: not a label map, or a label or name occurs twice.
    """
    try:
        # Keypoints, ancestors and the like are of no use here.
        content = text_format.Parse(file.read_text(encoding="utf-8"), _label_map(), allow_unknown_field=True)
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise DataError(f"{file}: cannot be read as a label map ({error})") from None
    names = {}
    for item in content.item:
        name = item.display_name or item.name
        if item.id == 0 and name == "background":
            continue  # the API lets it be listed; no box has it
        if not name:
            raise DataError(f"{file}: label {item.id} has no name")
        if item.id in names or name in names.values():
            raise DataError(f'{file}: label {item.id} or its name "{name}" occurs twice')
        names[item.id] = name
    if not names:
        raise DataError(f"{file}: it has no items")
    return names


def label_map_text(names):
    """{label: name} -> the content of such a file."""
    content = _label_map()
    for label, name in names.items():
        content.item.add(id=label, name=name)
    return text_format.MessageToString(content, as_utf8=True)


def _label_map():
    """An empty StringIntLabelMap, the part of the API's protos/string_int_label_map.proto that is used here."""
    file = descriptor_pb2.FileDescriptorProto(name="tfdet/label_map.proto", package="tfdet", syntax="proto2")
    field = descriptor_pb2.FieldDescriptorProto
    item = file.message_type.add(name="Item")
    item.field.add(name="name", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    item.field.add(name="id", number=2, type=field.TYPE_INT32, label=field.LABEL_OPTIONAL)
    item.field.add(name="display_name", number=3, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    whole = file.message_type.add(name="LabelMap")
    whole.field.add(name="item", number=1, type=field.TYPE_MESSAGE, type_name=".tfdet.Item", label=field.LABEL_REPEATED)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tfdet.LabelMap"))()
